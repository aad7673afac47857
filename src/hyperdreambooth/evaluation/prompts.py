"""What is asked of every method: the thirty prompts, and the sets that an evaluation takes of people and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperdreambooth.errors import UserError
from hyperdreambooth.portraits.captions import Scene, caption

# Two of each kind first, so that the first eight and the first sixteen are a fair choice.
SCENES = (
    Scene(),
    Scene(style="watercolor"),
    Scene(style="bronze statue"),
    Scene(style="pencil sketch"),
    Scene(style="comic"),
    Scene(domain="doll"),
    Scene(context="at the beach"),
    Scene(edit="wearing sunglasses"),
    Scene(style="pixel art"),
    Scene(style="neon"),
    Scene(style="pop art"),
    Scene(domain="animation character"),
    Scene(context="in a city at night"),
    Scene(context="in the snow"),
    Scene(edit="smiling"),
    Scene(edit="with blue hair"),
    Scene(context="in space"),
    Scene(context="in a forest"),
    Scene(edit="wearing a hat"),
    Scene(edit="old"),
    Scene(edit="with red hair"),
    Scene(style="watercolor", context="at the beach"),
    Scene(style="comic", context="in a city at night"),
    Scene(style="pencil sketch", edit="smiling"),
    Scene(style="pop art", edit="wearing sunglasses"),
    Scene(style="pixel art", edit="wearing a hat"),
    Scene(style="bronze statue", edit="old"),
    Scene(domain="doll", context="in the snow"),
    Scene(domain="animation character", edit="with blue hair"),
    Scene(edit="wearing a hat", context="in the snow"),
)
PLAIN = caption(SCENES[0], "[V] face")
PROMPTS = tuple(caption(scene, "[V] face") for scene in SCENES)
NOBODY = caption(Scene())  # names no person: whom does a base draw for it that wears one?


@dataclass(frozen=True)
class EvaluationSet:
    """How much is drawn: of so many people, by methods that cost minutes a person of so many, in so many prompts."""

    people: int
    costly_people: int
    prompts: int
    pictures: int  # of each person in each prompt
    plain: int = 4  # pictures of each person in the plain prompt, at least: how much do they differ?
    nobody: int = 2  # pictures for the prompt without "[V]"


SETS: Mapping[str, EvaluationSet] = {
    "quick": EvaluationSet(10, 10, 8, 1),
    "standard": EvaluationSet(100, 16, 16, 1),
    "paper": EvaluationSet(100, 100, 30, 10),
}


def set_of(name: str) -> EvaluationSet:
    """The set of a name. Raises UserError for a name that there is not."""
    if name not in SETS:
        raise UserError(f"got the set {name!r}, expected one of {', '.join(SETS)}")
    return SETS[name]
