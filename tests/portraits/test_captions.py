import numpy as np
import pytest

from hyperdreambooth.base.build import PRESETS, build_base
from hyperdreambooth.portraits.captions import (
    CONTEXTS,
    DOMAINS,
    EDITS,
    STYLES,
    WORLDS,
    Scene,
    caption,
    describe,
    parse,
    training_caption,
    vocabulary,
)
from hyperdreambooth.portraits.person import BY_NAME, Person

SCENES = [
    *(Scene(world, style) for world in (None, *WORLDS) for style in STYLES),
    *(Scene(style=style, domain=domain) for style in STYLES for domain in DOMAINS),
    *(Scene(world, style, context=context, edit=edit) for world in (None, *WORLDS) for style in STYLES
      for context in (None, *CONTEXTS) for edit in (None, *EDITS)),
]  # fmt: skip


def descriptions(person: Person, count: int = 200) -> set[str]:
    """Everything that is said of a person, phrase by phrase."""
    random = np.random.RandomState(0)
    texts = [describe(person, random, 1) for _ in range(count)]
    return {text.removeprefix("face with ") for text in texts} - {"face"}


def test_what_a_caption_says_is_read_back():
    assert all(parse(caption(scene, "[V] face")) == scene for scene in SCENES)


def test_choices_are_called_by_their_names():
    # long wavy, round, none, none
    said = descriptions(Person(5).changed(hair_style=10, glasses=1, beard=0, earrings=0), 400)
    assert {"long wavy hair", "round glasses"} <= said
    assert not any(word in phrase for phrase in said for word in ("beard", "earrings", "none"))


@pytest.mark.parametrize(
    ("name", "low", "high"), [("nose_width", "a narrow nose", "a wide nose"), ("freckles", None, "freckles")]
)
def test_numbers_are_named_at_their_ends_alone(name: str, low: str | None, high: str):
    attribute, random = BY_NAME[name], np.random.RandomState(1)
    for level, expected in ((0.0, low), (0.5, None), (1.0, high)):
        person = Person(5).changed(**{name: attribute.low + level * (attribute.high - attribute.low)})
        said = " ".join(describe(person, random, 14) for _ in range(40))
        assert [phrase for phrase in (low, high) if phrase and phrase in said] == ([expected] if expected else [])


def test_training_captions_keep_their_scene_and_fit_into_a_prompt():
    base, random = build_base(PRESETS["small"], vocabulary()), np.random.RandomState(2)
    longest = 0
    for number in range(3000):
        scene = SCENES[random.randint(len(SCENES))]
        text = training_caption(scene, Person(number % 200), random)
        read = parse(text)
        assert (read.style, read.domain, read.context, read.edit) == (
            scene.style,
            scene.domain,
            scene.context,
            scene.edit,
        )
        tokens = base.tokenizer.tokenize(text)
        assert all(token.endswith("</w>") for token in tokens), text  # whole words, none unknown
        longest = max(longest, len(tokens) + 2)
    assert longest <= base.tokenizer.model_max_length
