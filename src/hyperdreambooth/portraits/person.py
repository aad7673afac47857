"""Synthetic people: who somebody is, as named numbers that follow from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

HAIR_STYLES = (
    "bald", "buzz", "short", "side part", "quiff", "curly", "afro", "bob", "fringe bob", "long straight",
    "long wavy", "long curls", "top bun", "ponytail", "mohawk", "balding", "twin buns", "long fringe",
)  # fmt: skip
HAIR_COLOURS = ("black", "dark brown", "brown", "chestnut", "auburn", "ginger", "blond", "platinum")
EYE_COLOURS = ("dark brown", "brown", "amber", "hazel", "green", "blue", "grey")
BEARDS = ("none", "stubble", "moustache", "goatee", "chin strap", "full", "long full")
GLASSES = ("none", "round", "square", "cat-eye", "rectangular", "aviator")
FRAME_COLOURS = ("black", "tortoise", "gold", "red", "teal")
EARRINGS = ("none", "stud", "hoop")
MOLES = ("none", "left cheek", "right cheek", "above lip", "chin")


@dataclass(frozen=True)
class Attribute:
    """One number of a person: a continuous one in [low, high], or a choice, an index into `choices`."""

    name: str
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`"choice"` or `"continuous"`."""
        return "choice" if self.choices else "continuous"

    @property
    def width(self) -> int:
        """Columns it takes in `truth_matrix`: one per choice, or one."""
        return len(self.choices) or 1


def _choice(name: str, choices: tuple[str, ...]) -> Attribute:
    return Attribute(name, 0.0, len(choices) - 1.0, choices)


# Lengths are in heights of a reference picture; shapes without a natural unit are in [0, 1] or [-1, 1].
ATTRIBUTES = (
    Attribute("skin_tone"),
    Attribute("skin_warmth", -1.0, 1.0),
    Attribute("face_width", 0.226, 0.274),
    Attribute("jaw_width"),
    Attribute("chin_length", 0.335, 0.405),
    Attribute("chin_width"),
    Attribute("cheek_fullness"),
    Attribute("head_height", 0.355, 0.415),
    Attribute("ear_size", 0.75, 1.30),
    Attribute("ear_protrusion"),
    Attribute("eye_spacing", 0.106, 0.134),
    Attribute("eye_size", 0.052, 0.068),
    Attribute("eye_openness", 0.40, 0.66),
    Attribute("eye_tilt", -0.18, 0.26),
    Attribute("eye_fold"),
    Attribute("lashes"),
    Attribute("brow_thickness", 0.006, 0.019),
    Attribute("brow_arch"),
    Attribute("brow_height", 0.068, 0.102),
    Attribute("brow_tilt", -1.0, 1.0),
    Attribute("nose_width", 0.030, 0.058),
    Attribute("nose_length", 0.120, 0.168),
    Attribute("nose_bridge"),
    Attribute("mouth_width", 0.062, 0.108),
    Attribute("mouth_height", 0.40, 0.54),
    Attribute("lip_thickness", 0.6, 1.5),
    Attribute("lip_colour"),
    Attribute("hair_length"),
    Attribute("hair_volume"),
    Attribute("hairline"),
    Attribute("hair_part", -1.0, 1.0),
    Attribute("hair_shade", -1.0, 1.0),
    Attribute("grey"),
    Attribute("age"),
    Attribute("freckles"),
    Attribute("blush"),
    Attribute("neck_width", 0.115, 0.185),
    Attribute("shoulder_width"),
    _choice("hair_style", HAIR_STYLES),
    _choice("hair_colour", HAIR_COLOURS),
    _choice("eye_colour", EYE_COLOURS),
    _choice("beard", BEARDS),
    _choice("glasses", GLASSES),
    _choice("frame_colour", FRAME_COLOURS),
    _choice("earrings", EARRINGS),
    _choice("mole", MOLES),
)
BY_NAME: Mapping[str, Attribute] = MappingProxyType({a.name: a for a in ATTRIBUTES})

# How often a feminine and a masculine person wear each hair style, in the order of HAIR_STYLES.
_FEMININE_HAIR = np.array([0.5, 1, 2, 1, 1.5, 2.5, 3, 5, 5, 6, 6, 5, 5, 5, 0.8, 0, 3, 5], dtype=np.float64)
_MASCULINE_HAIR = np.array([5, 5, 7, 7, 6, 5, 3, 0.5, 0.5, 1.5, 1.5, 1.5, 1.5, 0.8, 2.5, 4, 0.1, 0.3], dtype=np.float64)


@dataclass(frozen=True)
class Person:
    """Somebody who does not exist. The same seed is the same person on every machine.

    Args:
        seed: 0 to 2**32 - 1.

    Attributes:
        values: each of `ATTRIBUTES` by name, in its own units; a choice is its index.
    """

    seed: int
    values: Mapping[str, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _sample(self.seed))

    def choice(self, name: str) -> str:
        """The word for a choice: `Person(7).choice("hair_style")`."""
        return BY_NAME[name].choices[int(self.values[name])]

    def changed(self, **values: float) -> Person:
        """The same person with some values replaced; it keeps the seed, so it is for looking and testing.

        Raises:
            KeyError: a name that is not an attribute.
        """
        unknown = sorted(set(values) - set(BY_NAME))
        if unknown:
            raise KeyError(f"unknown attributes {unknown}: expected names of ATTRIBUTES")
        other = Person(self.seed)
        object.__setattr__(other, "values", MappingProxyType({**self.values, **values}))
        return other


@lru_cache(maxsize=32_768)
def _sample(seed: int) -> Mapping[str, float]:
    """All attributes of a seed; a hidden masculinity and age tie them together the way people are tied."""
    random = np.random.RandomState(seed)
    masculine = float(random.rand() < 0.5) * 0.6 + 0.4 * random.rand()  # 0 feminine, 1 masculine
    age = random.beta(1.3, 1.9)
    level = {a.name: _spread(random) for a in ATTRIBUTES if not a.choices}
    level.update(skin_tone=random.rand(), age=age, hair_part=random.rand(), hair_shade=random.rand())
    for name, pull in _MASCULINE_PULL.items():
        level[name] = float(np.clip(level[name] + pull * (masculine - 0.5), 0.0, 1.0))
    level["freckles"] = max(0.0, random.rand() * 2.2 - 1.2) * (1.0 - 0.8 * level["skin_tone"])
    level["grey"] = float(np.clip((age - 0.5) * 2.4 + 0.5 * (random.rand() - 0.5), 0.0, 1.0))
    values = {a.name: a.low + level[a.name] * (a.high - a.low) for a in ATTRIBUTES if not a.choices}
    values.update(_sample_choices(random, masculine, age, level["skin_tone"]))
    return MappingProxyType({a.name: float(values[a.name]) for a in ATTRIBUTES})


_MASCULINE_PULL = {
    "jaw_width": 0.5, "chin_width": 0.4, "brow_thickness": 0.5, "brow_height": -0.4, "brow_arch": -0.4, "lashes": -0.9,
    "lip_colour": -0.6, "lip_thickness": -0.3, "eye_size": -0.3, "neck_width": 0.7, "shoulder_width": 0.5,
    "face_width": 0.2, "nose_width": 0.3, "blush": -0.5, "chin_length": 0.3,
}  # fmt: skip


def _spread(random: np.random.RandomState) -> float:
    """A level in [0, 1], fuller in the middle than uniform but reaching both ends."""
    return float(0.5 + 0.5 * np.sin(np.pi * (random.rand() - 0.5)) * (0.55 + 0.45 * random.rand()))


def _sample_choices(random: np.random.RandomState, masculine: float, age: float, tone: float) -> dict[str, float]:
    hair = (1.0 - masculine) ** 2 * _FEMININE_HAIR + masculine**2 * _MASCULINE_HAIR
    hair[[0, 15]] *= 0.4 + 1.6 * age  # bald, balding
    fair = max(0.0, 0.75 - tone)
    colour = np.array(
        [1.6 + 3 * tone, 1.8, 1.5, 1.2 * (fair + 0.3), 0.9 * (fair + 0.2), 1.1 * fair, 2.2 * fair, 0.9 * fair]
    )
    eyes = np.array([1.0 + 3 * tone, 1.8, 0.5 + 0.3 * fair, 1.2 * fair + 0.3, 1.6 * fair, 2.4 * fair, 1.1 * fair])
    beard = np.array([0.9, 1, 1, 1.1, 0.8, 1.4, 0.8]) if masculine > 0.6 else np.array([1.0, 0, 0, 0, 0, 0, 0])
    ring = np.array([1.0, 0.6, 0.8]) if masculine < 0.5 else np.array([1.0, 0.15, 0.08])
    return {
        "hair_style": _draw(random, hair),
        "hair_colour": _draw(random, colour),
        "eye_colour": _draw(random, eyes),
        "beard": _draw(random, beard),
        "glasses": _draw(random, np.array([3.2, 1, 1, 0.7, 0.8, 0.6])),
        "frame_colour": _draw(random, np.array([2.0, 1.5, 1.2, 0.8, 0.8])),
        "earrings": _draw(random, ring),
        "mole": _draw(random, np.array([3.0, 0.6, 0.6, 0.5, 0.5])),
    }


def _draw(random: np.random.RandomState, weights: np.ndarray) -> float:
    """An index drawn with these weights, from one uniform number."""
    return float(np.searchsorted(np.cumsum(weights) / weights.sum(), random.rand(), side="right"))


def people_matrix(seeds: Sequence[int]) -> Tensor:
    """Attributes of many people, one column each, scaled to [0, 1]; a choice is index / (choices - 1).

    Returns:
        (N, A) float32, A = `len(ATTRIBUTES)`.
    """
    people = [Person(seed).values for seed in seeds]
    rows = [[(person[a.name] - a.low) / (a.high - a.low) for a in ATTRIBUTES] for person in people]
    return torch.tensor(np.array(rows, dtype=np.float64).reshape(len(seeds), -1), dtype=torch.float32)


def truth_matrix(seeds: Sequence[int]) -> Tensor:
    """What a regression should read back, in the order of `ATTRIBUTES`: continuous ones in [0, 1], choices one-hot.

    Returns:
        (N, sum of widths) float32.
    """
    levels = people_matrix(seeds)  # (N, A)
    columns = []
    for column, a in enumerate(ATTRIBUTES):
        level = levels[:, column]
        if a.choices:
            index = (level * a.high).round().long()
            columns.append(torch.nn.functional.one_hot(index, a.width).float())  # (N, choices)
        else:
            columns.append(level[:, None])
    return torch.cat(columns, dim=1)
