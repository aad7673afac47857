"""PEOPLE, as the commands take them: synthetic ones by their seeds, or folders of photographs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError, WrongBase, WrongSpace
from hyperdreambooth.faces import cut_people, face_masks
from hyperdreambooth.faces.yunet import YuNet
from hyperdreambooth.files import write_atomically
from hyperdreambooth.fitting.fit import Pictures
from hyperdreambooth.fitting.preoptimize import FittedPeople, load_people
from hyperdreambooth.folders import Sources, pictures_of_dataset, pictures_of_people
from hyperdreambooth.hypernetwork.loss import People as TrainingPeople
from hyperdreambooth.photographs import (
    ENCODE,
    READ,
    Keeping,
    OnProgress,
    Photographed,
    as_floats,
    check_read,
    encode_few,
    reduced,
)
from hyperdreambooth.portraits.captions import Scene, caption
from hyperdreambooth.portraits.person import ATTRIBUTES, Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.styles import stylize
from hyperdreambooth.portraits.view import View
from hyperdreambooth.progress import Progress, log
from hyperdreambooth.sheet import save_png, to_image

WHO_IS_WHO = "people.json"
DATASET = "dataset:"
RENDER = "render"

LOOKALIKE = "~"  # "x~1" is made of a picture of "x": they must not be divided between training and measuring

_SEEDS = re.compile(r"portraits:(\d+)(?:-(\d+))?")
_HIGHEST_SEED = 2**32 - 1
_AT_ONCE = 64  # pictures between two reports
_HELD_OUT_SHARE = 16  # one in so many people is measured on, not trained on
_FEWEST = 4  # people to train on and to measure on, two of each


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
    detector: YuNet | None = None,
) -> People:
    """The people that a command names.

    Args:
        people: "portraits:0-999", the synthetic people of these seeds; a folder, see `folders`; or "dataset:NAME".
        size: side of the pictures in pixels.
        views: V of the synthetic people, the same for everybody; of photographs, no more than these are taken.
        only: who is taken, where not all are: people's names, or names of their photographs' files.
        most: how many people are taken, the first ones, where not all are.
        detector: what finds faces in photographs; None is OpenCV's cascades.

    Raises:
        UserError: neither, nobody there, or a name of `only` that is not there.
    """
    if (seeds := seeds_asked(people, only)) is not None:
        return _portraits(seeds[:most], size, views, progress)
    return _photographs(_chosen(_sources(people), people, only), people, size, views, progress, most, detector)


def find_people(
    people: str,
    size: int,
    views: int,
    keeping: Keeping,
    progress: OnProgress,
    only: Collection[str] | None = None,
    detector: YuNet | None = None,
) -> People | Photographed:
    """The people of `read_people`, of whom many may be photographed: faces are kept, and are not all in memory.

    Synthetic people are drawn anew, as that takes less time than to look for them.

    Raises:
        UserError: as `read_people`; another process reads people into the same folder. DiskFull, WorkError.
    """
    if seeds_of(people) is not None:
        return read_people(people, size, views, progress, only)
    return Photographed(_chosen(_sources(people), people, only), people, size, views, keeping, progress, detector)


def seeds_of(people: str) -> range | None:
    """The seeds of "portraits:FIRST-LAST"; None for anything else. Raises UserError for seeds that there are not."""
    if not (match := _SEEDS.fullmatch(people)):
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last <= _HIGHEST_SEED:
        raise UserError(f"got {people}, expected portraits:FIRST-LAST, both of 0 to {_HIGHEST_SEED}, in order")
    return range(first, last + 1)


def seeds_asked(people: str, only: Collection[str] | None) -> list[int] | None:
    """Those of `seeds_of` whose people are taken, all unless `only` names some. Raises UserError as `read_people`."""
    if (seeds := seeds_of(people)) is None:
        return None
    asked = _chosen({f"portrait-{seed}": [] for seed in seeds}, people, only)
    return [seed for seed in seeds if f"portrait-{seed}" in asked]


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


def _photographs(
    sources: Sources,
    where: str,
    size: int,
    views: int,
    progress: OnProgress,
    most: int | None,
    detector: YuNet | None,
) -> People:
    """Whoever has fewer photographs than another shows them again, so that all have V."""
    found = dict[str, Tensor]()
    tried = there = 0
    for done, (name, cut) in enumerate(cut_people(sources, size, views, 1, detector)):
        progress(Progress(READ, done, len(sources)))
        for note in cut.notes:
            log.warning("%s", note)
        tried, there = tried + cut.tried, there + len(sources[name])
        if len(cut.pictures):
            found[name] = as_floats(cut.pictures)
        if len(found) == most:
            break
    check_read(where, tried, sum(map(len, found.values())), there, views)
    most_views = max(map(len, found.values()))
    return People(tuple(found), torch.stack([own[torch.arange(most_views) % len(own)] for own in found.values()]))


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


def encode_people(base: Base, people: People | Photographed, progress: OnProgress = lambda _: None) -> Pictures:
    """The people's latents under soft face masks, for fitting."""
    if isinstance(people, Photographed):
        together = people.latents(base, progress)
    else:
        latents = list[Tensor]()
        for own in people.pictures:
            progress(Progress(ENCODE, len(latents), len(people.names)))
            latents.append(encode_few(base, own))  # (V, C, h, w)
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
    base: Base,
    people: People | Photographed,
    styles: Sequence[str] = (),
    progress: OnProgress = lambda _: None,
    side: int | None = None,
) -> Crowd:
    """Encode people's pictures, and with `styles`, which the base must know, one of each person in each of these.

    side: of the pictures that the crowd holds, at most; None keeps their own.
    """
    latents = encode_people(base, people, progress).latents
    if isinstance(people, People):
        whole = people.pictures  # (N, V, 3, S, S)
        pictures = torch.stack([reduced((own * 255).round().byte(), side or own.shape[-1]) for own in whole])
    elif styles:
        whole = people.pictures()
        pictures = torch.stack([reduced(own, side or own.shape[-1]) for own in whole])
    else:
        pictures = people.pictures(side)
    if styles:
        latents = torch.cat([latents, *_in_styles(base, whole, styles, progress)], dim=1)
    return Crowd(people.names, pictures, latents, face_masks(latents), prompts_of(styles, base.class_noun))


def prompts_of(styles: Sequence[str], class_noun: str) -> tuple[str, ...]:
    """What asks for a person in each of these styles."""
    return tuple(caption(Scene(style=style), f"[V] {class_noun}") for style in styles)


@torch.no_grad()
def _in_styles(base: Base, pictures: Tensor, styles: Sequence[str], progress: OnProgress) -> Iterator[Tensor]:
    """For each style the latents (N, 1, C, h, w) of everybody under its filter, a person's pictures taking turns.

    pictures: (N, V, 3, S, S), uint8 or in [0, 1].
    """
    count = len(pictures)
    for number, style in enumerate(styles):
        chosen = (torch.arange(count) + number) % pictures.shape[1]
        parts = list[Tensor]()
        for rows in torch.arange(count).split(_AT_ONCE):
            progress(Progress(ENCODE, number * count + int(rows[0]), len(styles) * count))
            some = as_floats(pictures[rows, chosen[rows]])
            parts.append(base.encode_pictures(stylize(some, style)).cpu())
        yield torch.cat(parts).unsqueeze(1)


def split_people(
    base: Base, crowd: Crowd, weights: Path
) -> tuple[dict[str, TrainingPeople], dict[str, TrainingPeople]]:
    """Everybody to train a hypernetwork on, those with numbers in the folder first, and some of these to measure it on.

    People without numbers teach it by the denoising loss alone; lookalikes of those who are measured are left out, and
    whoever has no finite fit.

    Raises:
        UserError: the numbers are of another base or space, or of people who are not among these, or of fewer than 4.
    """
    fitted = load_people(weights)
    _check_fitted(base, crowd.names, weights, fitted)
    row = {name: number for number, name in enumerate(crowd.names)}
    have = {*fitted.names, *fitted.left_out}
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
