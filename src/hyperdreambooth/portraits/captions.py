"""The caption grammar: what a prompt of the embedded base can say, and the scene that it means.

A `Scene` is everything about a picture that a prompt chooses: the world it comes from, the style it is drawn in, a far
domain, a context, an edit. `caption` writes a scene down, `parse` reads it back; both worlds share one grammar:

    a sks face                              either world, plain
    a photo of a sks face                   the world is said
    a watercolor of a sks face              either world, in a style
    a photo of a sks face in watercolor style
    a doll of a sks face                    a far domain (portraits only)
    a portrait of a sks face wearing a hat at the beach
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hyperdreambooth.portraits.person import BY_NAME, Person

RARE_TOKEN = "sks"
CLASS_NOUN = "face"

WORLDS = ("photo", "portrait")
STYLES = ("plain", "pencil sketch", "watercolor", "bronze statue", "pixel art", "neon", "pop art", "comic")
DOMAINS = ("doll", "animation character")
CONTEXTS = ("at the beach", "in the snow", "in a city at night", "in space", "in a forest")
EDITS = ("wearing a hat", "wearing sunglasses", "smiling", "old", "with blue hair", "with red hair")

# How a style is called in front of "of a face"; "in ... style" takes its plain name.
_MEDIA = {"pixel art": "pixel art", "neon": "neon art", "pop art": "pop art", "comic": "a comic drawing"}

# What `describe` may say of a choice, and the values that are not worth a word.
_CHOICES = {
    "hair_style": "{} hair",
    "hair_colour": "{} hair",
    "eye_colour": "{} eyes",
    "beard": "a {} beard",
    "glasses": "{} glasses",
    "earrings": "{} earrings",
    "mole": "a mole on {}",
}
_SILENT = ("none", "bald")
# What it may say of a number in the lowest or in the highest third of its range; None: nothing.
_NUMBERS: Mapping[str, tuple[str | None, str | None]] = {
    "skin_tone": ("light skin", "dark skin"),
    "skin_warmth": ("cool skin", "warm skin"),
    "face_width": ("a narrow head", "a wide head"),
    "jaw_width": ("a narrow jaw", "a wide jaw"),
    "chin_length": ("a short chin", "a long chin"),
    "cheek_fullness": ("hollow cheeks", "full cheeks"),
    "ear_size": ("small ears", "large ears"),
    "eye_spacing": ("close eyes", "distant eyes"),
    "eye_size": ("small eyes", "large eyes"),
    "eye_tilt": ("drooping eyes", "slanted eyes"),
    "brow_thickness": ("thin brows", "thick brows"),
    "brow_arch": ("straight brows", "arched brows"),
    "nose_width": ("a narrow nose", "a wide nose"),
    "nose_length": ("a short nose", "a long nose"),
    "mouth_width": ("a small mouth", "a wide mouth"),
    "lip_thickness": ("thin lips", "full lips"),
    "lip_colour": ("pale lips", "dark lips"),
    "hair_length": ("short hair", "long hair"),
    "hair_volume": ("flat hair", "big hair"),
    "grey": (None, "grey hair"),
    "age": ("smooth skin", "wrinkles"),
    "freckles": (None, "freckles"),
    "neck_width": ("a thin neck", "a thick neck"),
    "shoulder_width": ("narrow shoulders", "wide shoulders"),
}
DESCRIBED_SHARE = 0.5  # of the captions of portraits
_MOST_FEATURES = 7  # in one caption, if it fits into the prompt with the rest
_LONGEST = 30  # words and signs of a caption: a prompt of 32 tokens without its two ends


@dataclass(frozen=True)
class Scene:
    """What a prompt chooses. `None` means "not said": any world, no far domain, no context, no edit."""

    world: str | None = None
    style: str = "plain"
    domain: str | None = None
    context: str | None = None
    edit: str | None = None


# One prompt per style: the eight of the identification rate, and of the demo sheet's first half.
STYLE_SCENES = tuple(Scene(style=style) for style in STYLES)
EDIT_SCENES = (
    *(Scene(domain=domain) for domain in DOMAINS),
    *(Scene(context=context) for context in CONTEXTS),
    *(Scene(edit=edit) for edit in EDITS),
)


def caption(scene: Scene, subject: str = CLASS_NOUN) -> str:
    """The prompt that asks for `scene` of `subject` ("face", "[V] face", ...)."""
    noun = _with_article(f"old {subject}" if scene.edit == "old" else subject)
    style = "" if scene.style == "plain" else f" in {scene.style} style"
    if scene.domain is not None:
        text = f"{_with_article(scene.domain)} of {noun}{style}"
    elif scene.world is not None:
        text = f"a {scene.world} of {noun}{style}"
    elif scene.style == "plain":
        text = noun
    else:
        text = f"{_MEDIA.get(scene.style, _with_article(scene.style))} of {noun}"
    edit = f" {scene.edit}" if scene.edit not in (None, "old") else ""
    return text + edit + (f" {scene.context}" if scene.context else "")


def parse(prompt: str) -> Scene:
    """The scene that a prompt of the grammar asks for; words that it does not know mean nothing."""
    text = f" {' '.join(prompt.lower().replace(',', ' ').split())} "
    return Scene(
        world=_first(WORLDS, text, " {} of "),
        style=_first(STYLES[1:], text, " {} ") or "plain",
        domain=_first(DOMAINS, text, " {} "),
        context=_first(CONTEXTS, text, " {} "),
        edit=_first(EDITS, text, " {} "),
    )


def describe(person: Person, random: np.random.RandomState, features: int = 2) -> str:
    """A few true words on a portrait's person: "face with long wavy hair, round glasses and a wide nose".

    Those among `features` random attributes that are worth a word. Half of them are choices such as the hair style,
    which change a picture most.
    """
    halves = random.permutation(list(_CHOICES)), random.permutation(list(_NUMBERS))
    names = [str(name) for pair in zip(*halves, strict=False) for name in pair][:features]
    said = [phrase for name in names if (phrase := _phrase(person, name))]
    if not said:
        return CLASS_NOUN
    listed = " and ".join([", ".join(said[:-1]), said[-1]]) if len(said) > 1 else said[0]
    return f"{CLASS_NOUN} with {listed}"


def _phrase(person: Person, name: str) -> str | None:
    """What an attribute is called on this person; None where it is nothing to speak of."""
    if name in _CHOICES:
        value = person.choice(name)
        return None if value in _SILENT else _CHOICES[name].format(value)
    attribute = BY_NAME[name]
    level = (person.values[name] - attribute.low) / (attribute.high - attribute.low)  # in [0, 1]
    low, high = _NUMBERS[name]
    return low if level < 1 / 3 else high if level > 2 / 3 else None


def training_caption(scene: Scene, person: Person | None, random: np.random.RandomState) -> str:
    """A caption of a training picture: the rare token, the world and true features of a portrait come and go.

    The rare token stands in half of the captions, of anybody, but where features are told in its place: it is in the
    vocabulary and means no one.
    """
    subject = f"{RARE_TOKEN} {CLASS_NOUN}" if random.rand() < 0.5 else CLASS_NOUN
    if person is not None and scene.domain is None and random.rand() < DESCRIBED_SHARE:
        plain = scene.context is None and scene.edit is None  # else there is less room for words
        subject = describe(person, random, random.randint(1, _MOST_FEATURES + 1) if plain else 2)
    said = replace(scene, world=scene.world if random.rand() < 0.5 else None)
    while len(re.findall(r"\w+|[^\w\s]", text := caption(said, subject))) > _LONGEST and "," in subject:
        first, _, rest = subject.partition(" with ")
        subject = f"{first} with {rest.partition(', ')[2]}"  # one feature less
    return text


def vocabulary() -> tuple[str, ...]:
    """Every word that the grammar can write, sorted."""
    scenes = [Scene(world=world, style=style) for world in (None, *WORLDS) for style in STYLES] + list(EDIT_SCENES)
    texts = [caption(scene, f"{RARE_TOKEN} {CLASS_NOUN}") for scene in scenes] + [f"{CLASS_NOUN} with and", "an"]
    for name, phrase in _CHOICES.items():
        texts += [phrase.format(choice) for choice in BY_NAME[name].choices]
    texts += [phrase for both in _NUMBERS.values() for phrase in both if phrase]
    return tuple(sorted({word for text in texts for word in text.replace("-", " - ").split()}))


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _first(options: tuple[str, ...], text: str, pattern: str) -> str | None:
    return next((option for option in options if pattern.format(option) in text), None)
