"""The training pictures of both worlds, with what each one shows: the data set that VAE, base and judges learn from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.photographs import as_floats
from hyperdreambooth.portraits.captions import CONTEXTS, DOMAINS, EDITS, STYLES, Scene
from hyperdreambooth.portraits.pictures import draw, in_styles
from hyperdreambooth.portraits.view import View
from recipes.photographs import Photographs, lookalike

SHARD = 1000  # pictures per file
# Shares of the styles; the others share evenly what is left. Bronze holds so little light and colour that it
# weighs little in the denoising loss, and is learnt last, as neon was before it lit faces.
STYLE_SHARES = {"plain": 0.25, "neon": 0.16, "bronze statue": 0.15}
EXTRA_SHARE = 0.55  # of portraits, those with a far domain, a context or an edit
# Shares of these. Shapes weigh little in the denoising loss and want to be seen more often than places and colours.
EXTRA_SHARES = {("domain",): 0.3, ("context",): 0.15, ("edit",): 0.3, ("context", "edit"): 0.25}
COLOURED = ("with blue hair", "with red hair")  # edits that change many pixels, and are learnt soon
EDIT_SHARES = dict.fromkeys(COLOURED, 0.08)


@dataclass(frozen=True)
class Pictures:
    """N pictures (N, 3, S, S) uint8, the scene of each, and whose each is.

    `people` is a portrait's seed, or minus one minus the row of a photograph.
    """

    pictures: Tensor
    scenes: tuple[Scene, ...]
    people: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.people)


def joined(parts: Sequence[Pictures]) -> Pictures:
    """All pictures of the parts, in their order."""
    return Pictures(
        torch.cat([part.pictures for part in parts]),
        tuple(scene for part in parts for scene in part.scenes),
        tuple(person for part in parts for person in part.people),
    )


def make_shards(
    folder: Path,
    kind: str,
    shards: int,
    make: Callable[[np.random.RandomState, int], Pictures],
    seed: int,
    shard: int = SHARD,
) -> Iterator[str]:
    """Write the shards that are missing; yields a line per shard.

    Args:
        folder: of all kinds.
        kind: names the files.
        shards: how many files there are to be.
        make: the pictures of a file, of a random state and their number.
        seed: of the first file's random state; each file has one of its own, whichever others are there.
        shard: pictures per file.
    """
    for number in range(shards):
        path = _shard(folder, kind, number)
        if path.exists():
            continue
        made = make(np.random.RandomState(seed + number), shard)
        about = {"scenes": json.dumps([asdict(scene) for scene in made.scenes]), "people": json.dumps(made.people)}
        save_tensors(path, {"pictures": made.pictures}, about)
        yield f"{kind}, file {number + 1} of {shards}: {shard} pictures"


def load_shards(folder: Path, kind: str, shards: int) -> Pictures:
    """The first `shards` shards of a kind, as one."""
    parts = []
    for number in range(shards):
        tensors, about = load_tensors(_shard(folder, kind, number))
        scenes = tuple(Scene(**scene) for scene in json.loads(about["scenes"]))
        parts.append(Pictures(tensors["pictures"], scenes, tuple(json.loads(about["people"]))))
    return joined(parts)


def random_portraits(random: np.random.RandomState, count: int, people: int, size: int) -> Pictures:
    """`count` portraits of people drawn from the seeds 0 to `people` - 1, each in a view and a scene of its own."""
    seeds = [int(seed) for seed in random.randint(people, size=count)]
    scenes = [_random_scene(random) for _ in seeds]
    views = [View.sample(random) for _ in seeds]
    plain = draw(seeds, views, scenes, size)
    return Pictures((plain * 255).round().byte(), tuple(scenes), tuple(seeds))


def random_photographs(
    random: np.random.RandomState, count: int, photographs: Photographs, size: int, others: bool = False
) -> Pictures:
    """`count` photographs, half of them mirrored, a little shifted, in all styles; of `others`, lookalikes of theirs.

    A lookalike has the row of whom they are made of, and is nobody whom a recogniser should learn to know again.
    """
    rows = random.randint(len(photographs.names), size=count)
    scenes = [Scene(world="photo", style=_random_style(random)) for _ in rows]
    pictures = as_floats(torch.stack([_jittered(photographs.pictures[row], random, size) for row in rows]))
    if others:
        generator = torch.Generator().manual_seed(int(random.randint(2**31)))
        pictures = torch.stack([lookalike(picture, generator) for picture in pictures])  # (N, 3, S, S)
    styled = in_styles(pictures, [scene.style for scene in scenes])
    return Pictures((styled * 255).round().byte(), tuple(scenes), tuple(-1 - int(row) for row in rows))


def _random_scene(random: np.random.RandomState) -> Scene:
    style = _random_style(random)
    if random.rand() >= EXTRA_SHARE:
        return Scene("portrait", style)
    extra = list(EXTRA_SHARES)[random.choice(len(EXTRA_SHARES), p=list(EXTRA_SHARES.values()))]
    return Scene(
        "portrait",
        style,
        domain=_one(random, DOMAINS) if "domain" in extra else None,
        context=_one(random, CONTEXTS) if "context" in extra else None,
        edit=_one(random, EDITS, EDIT_SHARES) if "edit" in extra else None,
    )


def _random_style(random: np.random.RandomState) -> str:
    return _one(random, STYLES, STYLE_SHARES)


def _one(random: np.random.RandomState, options: tuple[str, ...], shares: Mapping[str, float] | None = None) -> str:
    """One of the options: some with shares of their own, what is left is spread evenly over the others."""
    given = shares or {}
    even = (1 - sum(given.values())) / (len(options) - len(given))
    return options[random.choice(len(options), p=[given.get(option, even) for option in options])]


def _jittered(picture: Tensor, random: np.random.RandomState, size: int) -> Tensor:
    """A photograph (3, T, T), T > size, cut to `size` near the middle, and mirrored half of the time."""
    room = picture.shape[-1] - size
    top, left = (int(random.randint(room + 1)) if room else 0 for _ in range(2))
    cut = picture[:, top : top + size, left : left + size]
    return cut.flip(-1) if random.rand() < 0.5 else cut


def _shard(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:03d}.safetensors"
