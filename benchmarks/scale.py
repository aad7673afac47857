"""A plan on paper: many people pre-optimised and served at Stable Diffusion 1.5, by counted work and assumed hardware.

    python -m benchmarks.sd15 --counts --output docs/sd15-counts.json
    python -m benchmarks.scale docs/sd15-counts.json

Prints tables in Markdown. FLOPs and bytes are counted; what the hardware does and costs is assumed, and asked for by
the options. `docs/scale.md` has the formulas.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from hyperdreambooth.base.single_file import LAYOUTS
from hyperdreambooth.evaluation.page import rows as table
from hyperdreambooth.fitting.finetune import PRESETS as FINETUNE
from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig
from hyperdreambooth.identity import Dtype, Identity
from hyperdreambooth.lidb import LiDBSpace, find_blocks, find_sites

GPUS = (1, 8, 64)
SHARES = (0.2, 0.3, 0.4)  # of the peak, at which the whole is planned
LATENTS = 4 * 64 * 64 * 4  # bytes of a picture's, in float32
HOUR, DAY = 3600.0, 86_400.0
FINDING = (0.1, 0.8)  # seconds of a core for the face of a photograph, from the quickest to the slowest


@dataclass(frozen=True)
class Assumed:
    """What is not counted."""

    peak: float = 790e12  # FLOP/s of one GPU's matrix products in bfloat16
    share: float = 0.4  # of the peak, that all this work reaches
    price: float = 3.5  # dollars for an hour of one GPU
    people: int = 15_000  # pre-optimised
    steps: int = 100  # of each
    noises: int = 4  # of each in a step: 1 or 4, which are counted
    views: int = 4  # photographs of each
    shard: int = 32  # people in one batch
    checkpoint: float = 60.0  # seconds between two checkpoints
    served: int = 1_000_000  # people who are made, and drawn
    pictures: int = 10  # of each of them in a month of 30 days
    passes: int = 51  # of the sampler for a picture in 50 steps, by that of Stable Diffusion 1.5
    trainers: int = 8  # GPUs that share it, at most: those of one machine
    photograph: int = 100_000  # bytes of one, as a file
    picture: int = 400_000  # bytes of one that was drawn, as a file
    versions: int = 4  # of a photograph at which a frozen encoder looks before a training
    features: int = 257 * 1280 * 2  # bytes of what ViT-H sees in one, in half precision

    @property
    def rate(self) -> float:
        """FLOP/s that one GPU does."""
        return self.peak * self.share


def sd15_space() -> LiDBSpace:
    """The space of Stable Diffusion 1.5, with the residual blocks' sites, from shapes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(LAYOUTS / "sd1" / "unet"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(LAYOUTS / "sd1" / "text_encoder"))
    rule = find_sites(text_encoder=text_encoder, unet=unet)
    return LiDBSpace((*rule, *find_blocks(unet)), 100, 50, rule_sites=len(rule))


def identity_bytes(space: LiDBSpace, ranks: int, dtype: Dtype, predicted: int | None = None) -> int:
    """The file of a person as it is written: so many ranks where people are fine-tuned, one on the others of the first
    `predicted` sites, by default all; of 0 ranks, the rule's sites alone."""
    first = FINETUNE["lidb"].config.places_in(space).start
    weights = torch.randn(len(space.sites), max(ranks, 1), space.width, generator=torch.Generator().manual_seed(0))
    weights[:first, 1:] = 0.0
    weights[predicted or first : first] = 0.0
    if ranks == 0:
        weights = weights[: len(space.rule.sites)]
    own = space.of(weights)
    person = Identity(weights, own.info, base="0" * 16, base_name="stable-diffusion-v1-5", blocks=own.blocks)
    with tempfile.TemporaryDirectory() as folder:
        return person.save(Path(folder) / "person.safetensors", dtype)


def sizes(space: LiDBSpace, assumed: Assumed) -> list[list[str]]:
    """Bytes of a person, and of all who are served."""
    rows = [["a person", "sites", "fp16 (bytes)", "int8 (bytes)", f"{assumed.served:,} in int8 (GB)"]]
    fresh, rule = FINETUNE["lidb"].config.rank_in(space), len(space.rule.sites)
    kinds = {
        "predicted on the rule's sites": (0, None),
        "predicted on all sites": (1, None),
        f"the first, fine-tuned: {fresh} ranks on the way up": (fresh, rule),
        f"the second, fine-tuned: {fresh + 1} ranks on the way up": (fresh + 1, None),
    }
    for name, (ranks, predicted) in kinds.items():
        fp16, int8 = (identity_bytes(space, ranks, kind, predicted) for kind in ("fp16", "int8"))
        sites = len(space.sites) if ranks else rule
        rows.append([name, str(sites), f"{fp16:,}", f"{int8:,}", f"{assumed.served * int8 / 1e9:.1f}"])
    return rows


def _base_bytes(counted: Mapping[str, float]) -> float:
    """Of the networks, in bfloat16."""
    return 2 * sum(counted[f"{name} (parameters)"] for name in ("U-Net", "text encoder", "VAE"))


def shard_seconds(counted: Mapping[str, float], assumed: Assumed) -> float:
    """Of a batch of people, all of whose steps have so many noises each."""
    step = counted[f"a person's step of {assumed.noises} noise{'s' * (assumed.noises > 1)} (GFLOP)"]
    return assumed.shard * assumed.steps * step * 1e9 / assumed.rate


def schedules(counted: Mapping[str, float], assumed: Assumed) -> list[list[str]]:
    """Hours of everybody by steps and noises: the aim's, the one that is planned for, and the command's preset."""
    rows = [["steps", "noises of each", *(f"{gpus} GPU{'s' * (gpus > 1)} (hours)" for gpus in GPUS)]]
    preset = PreoptimizeConfig()
    shards = math.ceil(assumed.people / assumed.shard)
    for steps, noises in ((100, 1), (assumed.steps, assumed.noises), (preset.fit.steps, preset.objective.noises)):
        seconds = shard_seconds(counted, replace(assumed, steps=steps, noises=noises))
        hours = [f"{math.ceil(shards / gpus) * seconds / HOUR:.2f}" for gpus in GPUS]
        rows.append([str(steps), str(noises), *hours])
    return rows


def beforehand(counted: Mapping[str, float], assumed: Assumed) -> list[list[str]]:
    """What the machine that the command runs on does alone, before others have work."""
    pictures = assumed.people * assumed.views
    encoding = pictures * counted["VAE, encode (GFLOP)"] * 1e9 / assumed.rate
    features = pictures * assumed.versions * assumed.features
    return [
        ["beforehand, on one machine", ""],
        ["faces found, hours of 16 cores", " to ".join(f"{pictures * each / 16 / HOUR:.1f}" for each in FINDING)],
        ["faces encoded, seconds of its GPU", f"{encoding:.0f}"],
        [f"for `train --versions {assumed.versions}`: features of ViT-H kept, GB", f"{features / 1e9:.0f}"],
    ]


def preoptimised(counted: Mapping[str, float], space: LiDBSpace, assumed: Assumed) -> list[list[str]]:
    """Hours, money and what moves, by number of GPUs."""
    seconds, numbers = shard_seconds(counted, assumed), 4 * space.size()
    shards = math.ceil(assumed.people / assumed.shard)
    latents = assumed.views * LATENTS
    rows = [
        ["GPUs", "shards of each, at most", "hours", "dollars", "to the GPUs (GB)", "back (GB)", "checkpoints (MB/s)"]
    ]
    for gpus in GPUS:
        rounds = math.ceil(shards / gpus)
        hours = rounds * seconds / HOUR
        there = gpus * _base_bytes(counted) + assumed.people * latents
        written = gpus * 4 * numbers * assumed.shard / assumed.checkpoint
        rows.append(
            [
                str(gpus),
                str(rounds),
                f"{hours:.2f}",
                f"{gpus * hours * assumed.price:.0f}",
                f"{there / 1e9:.1f}",
                f"{assumed.people * numbers / 1e9:.2f}",
                f"{written / 1e6:.2f}",
            ]
        )
    return rows


def needed(counted: Mapping[str, float], space: LiDBSpace, assumed: Assumed) -> list[list[str]]:
    """Disk of a pre-optimisation, and memory of one GPU."""
    kept = counted["a person's step of 4 noises, kept in float32 (bytes)"] / 2
    numbers = 4 * space.size()
    rows = [["what", "GB"]]
    for name, value in (
        ("disk: photographs", assumed.people * assumed.views * assumed.photograph),
        ("disk: their latents, float32", assumed.people * assumed.views * LATENTS),
        ("disk: fitted numbers, float32", assumed.people * numbers),
        ("memory: base, bfloat16", _base_bytes(counted)),
        ("memory: kept for the backward pass, a person of 4 noises, bfloat16", kept),
        (f"memory: the same, {assumed.shard} people", assumed.shard * kept),
        (f"memory: numbers, gradient, moments, average of {assumed.shard} people", 5 * numbers * assumed.shard),
    ):
        rows.append([name, f"{value / 1e9:.2f}"])
    return rows


def trained(counted: Mapping[str, float]) -> dict[str, float]:
    """FLOP of the hypernetwork's training, by phase, in as many steps as are preset."""
    return {
        name: 1e9 * counted[f"training on {name}, a step (GFLOP)"] * counted[f"training on {name} (steps)"]
        for name in ("weights", "both")
    }


def training(counted: Mapping[str, float], assumed: Assumed) -> list[list[str]]:
    """Work, hours and memory of the hypernetwork's training, by phase; on one GPU."""
    lasting = _base_bytes(counted) + sum(
        counted[name] for name in ("hypernetwork in float32 (bytes)", "gradient, moments and average of these (bytes)")
    )
    rows = [["on", "steps", "PFLOP", "1 GPU (hours)", "kept by a step, bfloat16 (GB)", "memory of it all (GB)"]]
    for name, flops in trained(counted).items():
        kept = counted[f"training on {name}, kept in float32 (bytes)"] / 2
        steps = counted[f"training on {name} (steps)"]
        hours = flops / assumed.rate / HOUR
        sizes = (f"{kept / 1e9:.1f}", f"{(kept + lasting) / 1e9:.1f}")
        rows.append([name, f"{steps:,.0f}", f"{flops / 1e15:,.0f}", f"{hours:.2f}", *sizes])
    return rows


def made(counted: Mapping[str, float]) -> float:
    """FLOP of a person: the prediction, the photograph encoded, 40 steps of one noise."""
    return 1e9 * (
        counted["prediction, 3 rounds (GFLOP)"]
        + counted["VAE, encode (GFLOP)"]
        + 40 * counted["a step of fine-tuning, 1 noise (GFLOP)"]
    )


def drawn(counted: Mapping[str, float], assumed: Assumed, answers: int = 2) -> float:
    """FLOP of a picture for which the U-Net gives so many answers a pass: guidance takes 2, likeness beside it 3."""
    step = counted["guided step (GFLOP)"] * answers / 2
    return 1e9 * (assumed.passes * step + counted["VAE, decode (GFLOP)"])


def needed_for_aims(counted: Mapping[str, float], assumed: Assumed) -> list[list[str]]:
    """What one GPU must reach for each aim: counted work by the seconds of the aim, as a share of the peak.

    Steps of one noise each, a photograph whose face is found, a picture without likeness.
    """
    picture = drawn(counted, assumed)
    fitted = assumed.people * 100 * counted["a person's step of 1 noise (GFLOP)"] * 1e9
    rows = [["aim, on one GPU", "TFLOP", "needs (TFLOP/s)", "of the peak"]]
    for name, work, seconds in (
        ("a person in 0.5 s", made(counted), 0.5),
        ("a person and the first picture in 1 s", made(counted) + picture, 1.0),
        (f"{assumed.people:,} people, 100 steps, in 3 hours", fitted, 3 * HOUR),
    ):
        needs = work / seconds
        rows.append([name, f"{work / 1e12:,.1f}", f"{needs / 1e12:,.0f}", f"{needs / assumed.peak:.0%}"])
    return rows


def served(counted: Mapping[str, float], space: LiDBSpace, assumed: Assumed) -> list[list[str]]:
    """People made and drawn, by number of GPUs."""
    identity = identity_bytes(space, FINETUNE["lidb"].config.rank_in(space) + 1, "int8")  # one predicted
    asked = assumed.served * assumed.pictures / 30  # a day
    head = "GPUs, all people made (hours), dollars, pictures a day, of those asked for, identities read (MB/s)"
    rows = [[*head.split(", "), "pictures sent (MB/s)"]]
    for gpus in GPUS:
        hours = assumed.served * made(counted) / (gpus * assumed.rate) / HOUR
        pictures = DAY * gpus * assumed.rate / drawn(counted, assumed)
        each = min(pictures, asked) / DAY
        rows.append(
            [
                str(gpus),
                f"{hours:.1f}",
                f"{gpus * hours * assumed.price:,.0f}",
                f"{pictures:,.0f}",
                f"{pictures / asked:.0%}",
                f"{each * identity / 1e6:.2f}",
                f"{each * assumed.picture / 1e6:.2f}",
            ]
        )
    return rows


def prices(counted: Mapping[str, float], assumed: Assumed) -> list[list[str]]:
    """What all pictures of all people cost: by the hours that GPUs work, and where they are held all month."""
    pictures = assumed.served * assumed.pictures
    person, plain, alike = made(counted), drawn(counted, assumed), drawn(counted, assumed, answers=3)
    head = "GPUs, pictures drawn (hours), dollars, with likeness (hours), dollars, people and pictures (dollars)"
    rows = [[*head.split(", "), "a person's all (cents)", "GPUs held 30 days (dollars)"]]
    for gpus in GPUS:
        hours, longer, making = (
            number * flops / (gpus * assumed.rate) / HOUR
            for number, flops in ((pictures, plain), (pictures, alike), (assumed.served, person))
        )
        whole = gpus * (making + hours) * assumed.price
        rows.append(
            [
                str(gpus),
                f"{hours:,.1f}",
                f"{gpus * hours * assumed.price:,.0f}",
                f"{longer:,.1f}",
                f"{gpus * longer * assumed.price:,.0f}",
                f"{whole:,.0f}",
                f"{100 * whole / assumed.served:.2f}",
                f"{gpus * 30 * DAY / HOUR * assumed.price:,.0f}",
            ]
        )
    return rows


def hours_of(counted: Mapping[str, float], assumed: Assumed, gpus: int) -> dict[str, float]:
    """Hours of each part of the whole on so many GPUs, one part after the other."""
    rounds = math.ceil(math.ceil(assumed.people / assumed.shard) / gpus)
    apart = assumed.rate * HOUR  # FLOP of a GPU in an hour
    return {
        f"{assumed.people:,} people pre-optimised": rounds * shard_seconds(counted, assumed) / HOUR,
        "hypernetwork trained": sum(trained(counted).values()) / (min(gpus, assumed.trainers) * apart),
        f"{assumed.served:,} people made": assumed.served * made(counted) / (gpus * apart),
        f"{assumed.served * assumed.pictures:,} pictures drawn": (
            assumed.served * assumed.pictures * drawn(counted, assumed) / (gpus * apart)
        ),
    }


def at_shares(counted: Mapping[str, float], assumed: Assumed) -> list[list[str]]:
    """Everything, at several shares of the peak: hours and dollars by number of GPUs.

    Dollars are of GPUs that work: those that the hypernetwork's training leaves out are not paid for meanwhile.
    """
    units = ((unit, gpus) for unit in ("hours", "dollars") for gpus in GPUS)
    rows = [["of the peak", "what", *(f"{gpus} GPU{'s' * (gpus > 1)} ({unit})" for unit, gpus in units)]]
    for share in SHARES:
        at_share = replace(assumed, share=share)
        hours = [hours_of(counted, at_share, gpus) for gpus in GPUS]
        dollars = [
            {part: _paid(part, gpus, at_share) * time * at_share.price for part, time in own.items()}
            for gpus, own in zip(GPUS, hours, strict=True)
        ]
        for part in hours[0]:
            cells = [f"{own[part]:,.2f}" for own in hours] + [f"{own[part]:,.0f}" for own in dollars]
            rows.append([f"{share:.0%}", part, *cells])
        sums = [f"{sum(own.values()):,.2f}" for own in hours] + [f"{sum(own.values()):,.0f}" for own in dollars]
        rows.append([f"{share:.0%}", "all of it", *sums])
    return rows


def _paid(part: str, gpus: int, assumed: Assumed) -> int:
    """GPUs that a part keeps busy."""
    return min(gpus, assumed.trainers) if part == "hypernetwork trained" else gpus


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=Path, help="what benchmarks.sd15 --counts wrote")
    for name in ("peak", "share", "price"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Assumed, name))
    for name in ("people", "steps", "noises", "views", "shard", "served", "pictures"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Assumed, name))
    options = parser.parse_args()
    counted = {one["name"]: one["value"] for one in json.loads(options.counts.read_text())}
    assumed = Assumed(**{name: value for name, value in vars(options).items() if name != "counts"})
    space = sd15_space()
    print(
        f"Assumed: {assumed.peak / 1e12:g} TFLOP/s, {assumed.share:.0%} of it, {assumed.price:g} dollars a GPU hour\n"
    )
    print(f"A shard of {assumed.shard} people: {shard_seconds(counted, assumed):.1f} s\n")
    for header, *body in (
        sizes(space, assumed),
        schedules(counted, assumed),
        preoptimised(counted, space, assumed),
        needed(counted, space, assumed),
        beforehand(counted, assumed),
        training(counted, assumed),
        needed_for_aims(counted, assumed),
        served(counted, space, assumed),
        prices(counted, assumed),
        at_shares(counted, assumed),
    ):
        print("\n".join(table(header, body)) + "\n")


if __name__ == "__main__":
    main()
