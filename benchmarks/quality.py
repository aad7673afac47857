"""Does the base draw what a prompt says, and different people each time?

    python -m benchmarks.quality --count 500 --photos CACHE/photographs.safetensors --out runs/quality

Generated pictures of each world, under prompts of all styles (for portraits of all far domains, contexts and edits
too), judged by networks that were trained on true pictures. A sheet of 64 of each world is for your own eyes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.judges import Judges
from benchmarks.kept import kept
from benchmarks.subjects import PORTRAITS, photographs, portraits
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.model import Base
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.embedded import JUDGES
from hyperdreambooth.evaluation.identification import scene_recognised, spread_ratio
from hyperdreambooth.evaluation.subjects import Subjects
from hyperdreambooth.files import write_text
from hyperdreambooth.portraits.captions import EDIT_SCENES, STYLES, Scene, caption
from hyperdreambooth.portraits.pictures import draw, in_styles
from hyperdreambooth.portraits.view import View
from hyperdreambooth.sheet import save_png, to_image

BATCH = 25
GUIDANCE = DrawConfig.guidance
SELDOM = 1 / 3  # what is recognised in fewer of the pictures that it was asked for in
console = Console(stderr=True)


def asked_scenes(world: str, count: int) -> list[Scene]:
    """`count` scenes of a world: each style in turn; of portraits every other one is a domain, a context or an edit."""
    styles = [Scene(world, style) for style in STYLES]
    if world == "photo":
        return [styles[number % len(styles)] for number in range(count)]
    extras = [
        Scene(None if scene.domain else world, scene.style, scene.domain, scene.context, scene.edit)
        for scene in EDIT_SCENES
    ]
    pair = [(styles[k % len(styles)], extras[k % len(extras)]) for k in range((count + 1) // 2)]
    return [scene for both in pair for scene in both][:count]


def drawn(base: Base, scenes: list[Scene], folder: Path, world: str) -> Tensor:
    """One picture of each scene, (N, 3, S, S); a batch per file, so that an interrupted run goes on."""
    parts = []
    for first in range(0, len(scenes), BATCH):
        prompts = [caption(scene) for scene in scenes[first : first + BATCH]]

        def make(first: int = first, prompts: list[str] = prompts) -> Tensor:
            console.print(f"  {world}: {first + 1} to {first + len(prompts)} of {len(scenes)}")
            return _sample(base, prompts, first)

        about = {"base": base.fingerprint, "prompts": repr(prompts), "guidance": str(GUIDANCE), "seed": str(first)}
        parts.append(kept(folder / f"{world}-{first:04d}.safetensors", about, make))
    return torch.cat(parts)


@torch.inference_mode()
def _sample(base: Base, prompts: list[str], seed: int) -> Tensor:
    """(n, 3, S, S) in [0, 1], on the CPU."""
    states, nothing = base.encode_prompts(prompts), base.encode_prompts([""])
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    noise = torch.cat([base.noise(1, generator) for generator in generators])
    return base.decode(base.sample(states, nothing, noise, guidance=GUIDANCE, generators=generators)).cpu().clone()


def true_pictures(subjects: Subjects, scenes: list[Scene]) -> Tensor:
    """As many true pictures of the same scenes, (N, 3, S, S); people repeat where there are fewer of them.

    Portraits: in views of their own. Photographs: the ones there are, under the styles' filters.
    """
    rows = [row % len(subjects.references) for row in range(len(scenes))]
    if subjects.seeds is None:
        return in_styles(subjects.references[rows], [scene.style for scene in scenes])
    random = np.random.RandomState(9_000)
    views = [View.sample(random) for _ in scenes]
    return draw([subjects.seeds[row] for row in rows], views, scenes, subjects.references.shape[-1])


def sheet_of(pictures: Tensor, path: Path) -> None:
    """The first 64 pictures (N, 3, S, S), eight in a row, twice their size; white where there are fewer."""
    some = pictures[:64]
    size = some.shape[-1]
    blank = some.new_ones(-len(some) % 8, 3, size, size)
    rows = torch.cat([some, blank]).view(-1, 8, 3, size, size)
    image = to_image(rows.permute(2, 0, 3, 1, 4).reshape(3, -1, 8 * size))  # (3, rows * S, 8 * S)
    save_png(path, image.resize((2 * image.width, 2 * image.height)))


def quality(
    base: Base, judges: Judges, worlds: Mapping[str, Subjects], count: int, out: Path
) -> dict[str, dict[str, float]]:
    """The figures of each world, which also lie in `out`/quality.json, with what is seldom drawn; prints them.

    Args:
        base: to be judged.
        judges: see `Judges`; without a scene classifier, what was prompted is not judged.
        worlds: people who are truly so, by "portrait" or "photo".
        count: pictures of each world.
        out: folder; pictures that are there are not drawn again.
    """
    results: dict[str, dict[str, float]] = {}
    asked, seen, shares = list[Scene](), list[Scene](), dict[str, float]()
    for world, subjects in worlds.items():
        scenes = asked_scenes(world, count)
        pictures = drawn(base, scenes, out / base.fingerprint, world)
        sheet_of(pictures, out / f"{world}.png")
        results[world], read = measured(judges, scenes, pictures, true_pictures(subjects, scenes))
        if read:
            asked, seen = asked + scenes, seen + read
        results[world] |= {"pictures": count, "true people": min(count, len(subjects.references))}
        Console().print(f"{world}:", ", ".join(f"{name} {value:.4g}" for name, value in results[world].items()))
        shares = read_shares(asked, seen)
        about = {"base": base.fingerprint, "seldom": seldom(shares), "read where asked for": shares}
        write_text(out / "quality.json", json.dumps(about | results, indent=1) + "\n")
    if shares:
        Console().print("read where asked for:", ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    return results


def measured(
    judges: Judges, scenes: list[Scene], pictures: Tensor, true: Tensor
) -> tuple[dict[str, float], list[Scene]]:
    """Of generated pictures (N, 3, S, S) and true ones of the same scenes: spread, and how often scenes are read.

    With it what is read in the generated ones; nothing without a scene classifier.
    """
    embed = judges.recogniser.embed
    figures = {"spread": spread_ratio(embed(pictures), embed(true))}  # in units of that of true pictures
    if judges.scenes is None:
        return figures, []
    seen, truly = judges.scenes.read(pictures), judges.scenes.read(true)
    far = [scene.domain is not None or scene.edit is not None for scene in scenes]
    for kind, among in (("recognised", None), ("styles and places", False), ("far domains and edits", True)):
        rows = [row for row, one in enumerate(far) if among in (None, one)]
        if rows:
            asked = [scenes[row] for row in rows]
            rate = scene_recognised([seen[row] for row in rows], asked)
            low, high = rate.interval
            figures |= {kind: rate.share, f"{kind}, low": low, f"{kind}, high": high}
            figures[f"{kind}, true pictures"] = scene_recognised([truly[row] for row in rows], asked).share
    return figures, list(seen)


def read_shares(asked: Sequence[Scene], seen: Sequence[Scene]) -> dict[str, float]:
    """In which share of the pictures that it was asked for in each domain, context and edit is read."""
    hits = dict[str, list[bool]]()
    for scene, read in zip(asked, seen, strict=True):
        for part in ("domain", "context", "edit"):
            if (phrase := getattr(scene, part)) is not None:
                hits.setdefault(phrase, []).append(getattr(read, part) == phrase)
    return {phrase: sum(some) / len(some) for phrase, some in hits.items()}


def seldom(shares: Mapping[str, float]) -> str:
    """Of `read_shares`, those that are read in fewer than `SELDOM` of their pictures, for a base's card."""
    return ", ".join(phrase for phrase, share in shares.items() if share < SELDOM)


def main(
    count: Annotated[int, typer.Option(help="Pictures of each world.")] = 500,
    photos: Annotated[
        Path | None, typer.Option(help="The recipe's photographs.safetensors, for the second world.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/quality"),
    base: Annotated[str, typer.Option(help="The base to judge.")] = "embedded",
    judges: Annotated[Path, typer.Option(help="Folder of the judges.")] = JUDGES,
) -> None:
    """Print the share of prompts that are recognised and the spread of people, and leave sheets."""
    torch.set_flush_denormal(True)
    opened = load_base(base)
    size = opened.picture_size
    worlds = {"portrait": portraits("tuning", min(count, len(PORTRAITS["tuning"])), size)}
    if photos is not None:
        worlds["photo"] = photographs(photos, "training", count, size)
    quality(opened, Judges.load(judges), worlds, count, out)


if __name__ == "__main__":
    typer.run(main)
