"""Does the base draw what a prompt says, and different people each time?

    python -m benchmarks.quality --count 500 --photos CACHE/photographs.safetensors --out runs/quality

Generated pictures of each world, under prompts of all styles (for portraits of all far domains, contexts and edits
too), judged by networks that were trained on true pictures. A sheet of 64 of each world is for your own eyes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.judges import Judges
from benchmarks.subjects import photographs, portraits
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.model import Base
from hyperdreambooth.evaluation.identification import scene_recognised, spread_ratio
from hyperdreambooth.files import load_tensors, save_tensors, write_atomically
from hyperdreambooth.portraits.captions import EDIT_SCENES, STYLES, Scene, caption
from hyperdreambooth.sheet import to_image
from recipes.pictures import in_styles

BATCH = 25
GUIDANCE = 3.0
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
        path = folder / f"{world}-{first:04d}.safetensors"
        if not path.exists():
            some = scenes[first : first + BATCH]
            generator = torch.Generator().manual_seed(first)
            with torch.inference_mode():
                states, nothing = base.encode_prompts([caption(scene) for scene in some]), base.encode_prompts([""])
                latents = base.sample(states, nothing, base.noise(len(some), generator), guidance=GUIDANCE)
                save_tensors(path, {"pictures": (base.decode(latents) * 255).round().byte()})
            console.print(f"  {world}: {first + len(some)} of {len(scenes)}")
        parts.append(load_tensors(path)[0]["pictures"])
    return torch.cat(parts).float() / 255


def true_pictures(world: str, scenes: list[Scene], size: int, photos: Path | None) -> Tensor:
    """As many true pictures in the same styles, (N, 3, S, S); people repeat where there are fewer of them."""
    if world == "photo":
        assert photos is not None
        references = photographs(photos, "training", len(scenes), size).references
    else:
        references = portraits("tuning", min(900, len(scenes)), size).references
    rows = np.arange(len(scenes)) % len(references)
    return in_styles(references[rows], [scene.style for scene in scenes])


def sheet_of(pictures: Tensor, path: Path) -> None:
    """The first 64 pictures (N, 3, S, S), eight in a row, twice their size."""
    some = pictures[:64]
    size = some.shape[-1]
    grid = some.view(-1, 8, 3, size, size).permute(2, 0, 3, 1, 4).reshape(3, -1, 8 * size)
    image = to_image(grid)
    write_atomically(path, lambda part: image.resize((2 * image.width, 2 * image.height)).save(part))


def main(
    count: Annotated[int, typer.Option(help="Pictures of each world.")] = 500,
    photos: Annotated[
        Path | None, typer.Option(help="The recipe's photographs.safetensors, for the second world.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/quality"),
    base: Annotated[str, typer.Option()] = "embedded",
) -> None:
    """Print the share of prompts that are recognised and the spread of people, and leave sheets."""
    torch.set_flush_denormal(True)
    opened, judges = load_base(base), Judges.load()
    results: dict[str, object] = {"base": opened.fingerprint, "count": count}
    for world in ("portrait", "photo") if photos is not None else ("portrait",):
        scenes = asked_scenes(world, count)
        pictures = drawn(opened, scenes, out / opened.fingerprint, world)
        sheet_of(pictures, out / f"{world}.png")
        recognised = scene_recognised(judges.scenes.read(pictures), scenes)
        true = true_pictures(world, scenes, opened.picture_size, photos)
        own = scene_recognised(judges.scenes.read(true), [Scene(style=scene.style) for scene in scenes])
        ratio = spread_ratio(judges.recogniser.embed(pictures), judges.recogniser.embed(true))
        results[world] = {"recognised": recognised.share, "spread": ratio, "judge on true styles": own.share}
        Console().print(f"{world}: prompt recognised {recognised}, spread {ratio:.2f} of true; judge on true {own}")
    write_atomically(out / "quality.json", lambda part: part.write_text(json.dumps(results, indent=1) + "\n"))


if __name__ == "__main__":
    typer.run(main)
