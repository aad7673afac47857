"""PEOPLE, as the commands take them: synthetic ones by their seeds, or folders of photographs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import BadPicture, UserError, WrongBase, WrongSpace
from hyperdreambooth.faces import crop_face, face_masks, read_encoded, read_picture
from hyperdreambooth.files import write_atomically
from hyperdreambooth.fitting.fit import Pictures
from hyperdreambooth.fitting.preoptimize import FittedPeople, load_people
from hyperdreambooth.folders import Source, Sources, pictures_of_dataset, pictures_of_people
from hyperdreambooth.hypernetwork.loss import People as TrainingPeople
from hyperdreambooth.portraits.captions import Scene, caption
from hyperdreambooth.portraits.person import ATTRIBUTES, Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.styles import stylize
from hyperdreambooth.portraits.view import View
from hyperdreambooth.progress import Progress, log
from hyperdreambooth.sheet import save_png, to_image

WHO_IS_WHO = "people.json"
DATASET = "dataset:"
READ, ENCODE, RENDER = "read people", "encode", "render"

LOOKALIKE = "~"  # "x~1" is made of a picture of "x": they must not be divided between training and measuring

_SEEDS = re.compile(r"portraits:(\d+)(?:-(\d+))?")
_HIGHEST_SEED = 2**32 - 1
_AT_ONCE = 64  # pictures between two reports
_HELD_OUT_SHARE = 16  # one in so many people is measured on, not trained on
_FEWEST = 4  # people to train on and to measure on, two of each

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class People:
    """N people, V pictures of each, in the training pictures' framing."""

    names: tuple[str, ...]
    pictures: Tensor  # (N, V, 3, size, size) float32 in [0, 1]


def read_people(
    people: str,
    size: int,
    views: int,
    progress: OnProgress,
    only: Collection[str] | None = None,
    most: int | None = None,
) -> People:
    """The people that a command names.

    Args:
        people: "portraits:0-999", the synthetic people of these seeds; a folder, see `folders`; or "dataset:NAME".
        size: side of the pictures in pixels.
        views: V of the synthetic people, the same for everybody; of photographs, all are taken.
        only: who is taken, where not all are: people's names, or names of their photographs' files.
        most: how many people are taken, the first ones, where not all are.

    Raises:
        UserError: neither, nobody there, or a name of `only` that is not there.
    """
    if (seeds := seeds_of(people)) is not None:
        asked = _chosen({f"portrait-{seed}": [] for seed in seeds}, people, only)
        return _portraits([seed for seed in seeds if f"portrait-{seed}" in asked][:most], size, views, progress)
    return _photographs(_chosen(_sources(people), people, only), people, size, progress, most)


def seeds_of(people: str) -> range | None:
    """The seeds of "portraits:FIRST-LAST"; None for anything else. Raises UserError for seeds that there are not."""
    if not (match := _SEEDS.fullmatch(people)):
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last <= _HIGHEST_SEED:
        raise UserError(f"got {people}, expected portraits:FIRST-LAST, both of 0 to {_HIGHEST_SEED}, in order")
    return range(first, last + 1)


def _portraits(seeds: Sequence[int], size: int, views: int, progress: OnProgress) -> People:
    """Everybody in the same views, so that what differs between their numbers is who they are."""
    random = np.random.RandomState(0)
    common = [View.reference(), *(View.sample(random) for _ in range(views - 1))]
    drawn: list[Tensor] = []
    for seed in seeds:
        progress(Progress(READ, len(drawn), len(seeds)))
        drawn.append(render([Person(seed)] * views, common, size))  # (V, 3, size, size)
    return People(tuple(f"portrait-{seed}" for seed in seeds), torch.stack(drawn))


def names_of(people: str) -> list[str]:
    """The names of the people that a command names, of whom no picture is read. Raises UserError as `read_people`."""
    if (seeds := seeds_of(people)) is not None:
        return [f"portrait-{seed}" for seed in seeds]
    return list(_sources(people))


def _sources(people: str) -> Sources:
    if (dataset := people.removeprefix(DATASET)) != people:
        return pictures_of_dataset(dataset)
    folder = Path(people)
    if not folder.is_dir():
        raise UserError(
            f"got {people}, expected portraits:FIRST-LAST, a folder of photographs or {DATASET}NAME: check the path"
        )
    return pictures_of_people(folder)


def _photographs(sources: Sources, where: str, size: int, progress: OnProgress, most: int | None) -> People:
    """Whoever has fewer photographs than another shows them again, so that all have V."""
    found: dict[str, list[Tensor]] = {}
    tried = left_out = 0
    for done, (name, pictures) in enumerate(sources.items()):
        if len(found) == most:
            break
        progress(Progress(READ, done, len(sources)))
        faces = [face for picture in pictures if (face := _face(picture, size)) is not None]
        tried, left_out = tried + len(pictures), left_out + len(pictures) - len(faces)
        if faces:
            found[name] = faces
    if not found:
        raise UserError(f"got {where} without a photograph, expected person/photo.jpg or photo.jpg inside it")
    if left_out:
        log.warning("%d of %d pictures were left out", left_out, tried)
    views = max(len(faces) for faces in found.values())
    return People(tuple(found), torch.stack([torch.stack([*islice(cycle(own), views)]) for own in found.values()]))


def _chosen(sources: Sources, folder: str, only: Collection[str] | None) -> Sources:
    """The pictures of each person, or of those who are asked for, by their names or those of their pictures' files."""
    if only is None:
        return sources
    chosen = Sources()
    there = set[str]()
    for name, pictures in sources.items():
        files = {Path(str(picture)).name for picture in pictures}
        there |= {name} | files
        some = pictures if name in only else [picture for picture in pictures if Path(str(picture)).name in only]
        if some or name in only:
            chosen[name] = some
    if missing := sorted(set(only) - there):
        raise UserError(f"{folder} has no {missing[0]} ({len(missing)} of {len(only)} names are not there): check")
    return chosen


def _face(source: Source, size: int) -> Tensor | None:
    """(3, size, size), or None for what is no picture: one of a thousand is no reason to stop."""
    try:
        picture = read_picture(source) if isinstance(source, Path) else read_encoded(source.fetch(), source.name)
        crop = crop_face(picture, size)
    except BadPicture as error:
        log.warning("left out: %s", error)
        return None
    if crop.note is not None:
        log.warning("%s: %s", source, crop.note)
    return crop.picture


@torch.no_grad()
def encode_people(base: Base, people: People, progress: OnProgress = lambda _: None) -> Pictures:
    """The people's latents under soft face masks, for fitting; a person's pictures pass the VAE at once."""
    latents = list[Tensor]()
    for own in people.pictures:
        progress(Progress(ENCODE, len(latents), len(people.names)))
        latents.append(base.encode_pictures(own).cpu())  # (V, C, h, w)
    together = torch.stack(latents)  # (N, V, C, h, w)
    return Pictures(together, face_masks(together))


@dataclass(frozen=True)
class Crowd:
    """N people as a hypernetwork learns from them: P plain pictures of each, and V latents.

    Attributes:
        names: N.
        pictures: (N, P, 3, size, size) uint8.
        latents: (N, V, C, h, w), first those of the pictures, then those under the prompts.
        masks: (N, V, 1, h, w).
        prompts: V - P.
    """

    names: tuple[str, ...]
    pictures: Tensor
    latents: Tensor
    masks: Tensor
    prompts: tuple[str, ...] = ()

    def first(self, count: int) -> Crowd:
        """The first so many of them."""
        some = slice(count)
        return Crowd(self.names[some], self.pictures[some], self.latents[some], self.masks[some], self.prompts)


def encode_crowd(
    base: Base, people: People, styles: Sequence[str] = (), progress: OnProgress = lambda _: None
) -> Crowd:
    """Encode people's pictures, and with `styles`, which the base must know, one of each person in each of these."""
    plain = encode_people(base, people, progress)
    latents = torch.cat([plain.latents, *_in_styles(base, people, styles, progress)], dim=1)
    pictures = (people.pictures * 255).round().byte()
    return Crowd(people.names, pictures, latents, face_masks(latents), prompts_of(styles, base.class_noun))


def prompts_of(styles: Sequence[str], class_noun: str) -> tuple[str, ...]:
    """What asks for a person in each of these styles."""
    return tuple(caption(Scene(style=style), f"[V] {class_noun}") for style in styles)


@torch.no_grad()
def _in_styles(base: Base, people: People, styles: Sequence[str], progress: OnProgress) -> Iterator[Tensor]:
    """For each style the latents (N, 1, C, h, w) of everybody under its filter, a person's pictures taking turns."""
    count = len(people.names)
    for number, style in enumerate(styles):
        chosen = (torch.arange(count) + number) % people.pictures.shape[1]
        parts = list[Tensor]()
        for rows in torch.arange(count).split(_AT_ONCE):
            progress(Progress(ENCODE, number * count + int(rows[0]), len(styles) * count))
            parts.append(base.encode_pictures(stylize(people.pictures[rows, chosen[rows]], style)).cpu())
        yield torch.cat(parts).unsqueeze(1)


def split_people(
    base: Base, crowd: Crowd, weights: Path
) -> tuple[dict[str, TrainingPeople], dict[str, TrainingPeople]]:
    """Everybody to train a hypernetwork on, those with numbers in the folder first, and some of these to measure it on.

    People without numbers teach it by the denoising loss alone; lookalikes of those who are measured are left out.

    Raises:
        UserError: the numbers are of another base or space, or of people who are not among these, or of fewer than 4.
    """
    fitted = load_people(weights)
    _check_fitted(base, crowd.names, weights, fitted)
    row = {name: number for number, name in enumerate(crowd.names)}
    have = set(fitted.names)
    held = max(2, len(fitted.names) // _HELD_OUT_SHARE)
    measured = [row[name] for name in fitted.names[-held:]]
    known = [row[name] for name in fitted.names[:-held]]
    apart = set(fitted.names[-held:])
    unknown = [row[name] for name in crowd.names if name not in have and name.partition(LOOKALIKE)[0] not in apart]

    def some(rows: list[int], numbers: Tensor) -> dict[str, TrainingPeople]:
        pictures, latents, masks = (tensor[rows] for tensor in (crowd.pictures, crowd.latents, crowd.masks))
        return {"people": TrainingPeople(pictures, latents, numbers, masks, crowd.prompts)}

    return some(known + unknown, fitted.weights[:-held]), some(measured, fitted.weights[-held:])


def _check_fitted(base: Base, there: Sequence[str], weights: Path, fitted: FittedPeople) -> None:
    names = fitted.names
    if fitted.base != base.fingerprint:
        raise WrongBase(
            f'{weights} was fitted on base {fitted.base[:8]}..., this is "{base.name}" ({base.fingerprint[:8]}...): '
            "give the base that it was fitted on"
        )
    own = {key: getattr(base.card, key) for key in ("a", "b", "seed", "scale")}
    WrongSpace.check(f"{weights} is of", fitted.space, own, "fit the people anew on this base")
    if strangers := sorted(set(names) - set(there)):
        raise UserError(
            f"{weights} has {len(strangers)} people whom PEOPLE has not, such as {strangers[0]}: give the same people"
        )
    if len(names) < _FEWEST:
        raise UserError(f"{weights} has {len(names)} fitted people, expected {_FEWEST} or more: fit more")


def write_portraits(folder: Path, seeds: range, views: int, size: int, progress: OnProgress) -> int:
    """Render people as PNG files and write who is who beside them; returns the bytes written.

    Each person's first view is frontal, the others are drawn from the person's seed. `read_people` takes the folder.

    Raises:
        UserError: a seed out of range. DiskFull, WorkError: the files that are there are whole.
    """
    if not 0 <= seeds.start <= seeds[-1] <= _HIGHEST_SEED:
        raise UserError(f"got seeds {seeds.start} to {seeds[-1]}, expected them in 0 to {_HIGHEST_SEED}")
    everyone = [(seed, number, view) for seed in seeds for number, view in enumerate(_views(seed, views))]
    written = 0
    for first in range(0, len(everyone), _AT_ONCE):
        progress(Progress(RENDER, first, len(everyone)))
        some = everyone[first : first + _AT_ONCE]
        pictures = render([Person(seed) for seed, _, _ in some], [view for _, _, view in some], size)
        for (seed, number, _), picture in zip(some, pictures, strict=True):
            written += save_png(folder / _file(seed, number, views), to_image(picture))
    text = json.dumps([_who(seed, views) for seed in seeds], indent=1) + "\n"
    write_atomically(folder / WHO_IS_WHO, lambda part: part.write_text(text))
    return written + len(text)


def _views(seed: int, count: int) -> list[View]:
    random = np.random.RandomState([seed, 1])  # a stream of its own beside the person's
    return [View.reference(random), *(View.sample(random) for _ in range(count - 1))]


def _file(seed: int, view: int, views: int) -> str:
    """A person of several views has a folder, as `read_people` takes them."""
    return f"{seed:07d}.png" if views == 1 else f"{seed:07d}/{view}.png"


def _who(seed: int, views: int) -> dict[str, object]:
    """One person's entry: attributes, choices in words, and what each picture shows."""
    person = Person(seed)
    attributes = {a.name: person.choice(a.name) if a.choices else round(person.values[a.name], 4) for a in ATTRIBUTES}
    pictures = [{"file": _file(seed, number, views)} | asdict(view) for number, view in enumerate(_views(seed, views))]
    return {"seed": seed, "attributes": attributes, "pictures": pictures}
