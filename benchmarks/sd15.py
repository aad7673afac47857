"""Seconds, TFLOP/s and memory of every phase on Stable Diffusion 1.5 at its true size with random numbers.

    python -m benchmarks.sd15 --output sd15.json
    python -m benchmarks.sd15 --counts              # FLOPs alone, from shapes, in a minute and 1 GB

Speed does not depend on what the numbers are, so no weights are fetched. FLOPs are counted on the operations that run
(a multiply-add is two), and shares are of what a large matrix product or convolution, whichever is faster, reaches in
the same run. On a CPU the phases are cut to a few steps: the table says to how many. Seconds of a CPU's single thread
are those that it spends here: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.counts import Counted, counts, device_name, peaks, seconds_of
from benchmarks.memory import _layout, forget_peak, peak_bytes, random_base
from benchmarks.plain_lora import PlainLora
from benchmarks.plain_picture import plain_picture, plain_pipeline
from benchmarks.rows import EACH, FEW_STEPS, ONE, PLAIN_PICTURE, SET_UP, Row, noises_of, people_in, ratios, totals
from hyperdreambooth.base.compiled import compile_unet
from hyperdreambooth.base.hardware import PRECISIONS, choose, name_of
from hyperdreambooth.base.model import Base
from hyperdreambooth.drawing import LIKENESS, DrawConfig, draw
from hyperdreambooth.faces import face_masks
from hyperdreambooth.files import write_text
from hyperdreambooth.fitting.finetune import PRESETS as FINETUNE
from hyperdreambooth.fitting.finetune import Finetuning, finetune
from hyperdreambooth.fitting.fit import Pictures
from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig, fit_people
from hyperdreambooth.hypernetwork.cost import count_flops
from hyperdreambooth.hypernetwork.model import PRESETS, random_hypernetwork
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import Adapters, inject
from hyperdreambooth.pipeline import space_of

PROMPT = "a [V] face"
PHASES = ("hypernetwork", "encode", "finetune", "picture", "preoptimise", "mixed", "plain")
WARM_UP = 2  # steps before those that are timed, at most


@dataclass(frozen=True)
class Amount:
    """How much of each phase is timed."""

    steps: int  # of fine-tuning and of the plain loop
    noises: tuple[int, ...]  # of fine-tuning, and of the plain loop of rank 4
    tuned: tuple[int, ...]  # people fine-tuned in one batch, of one noise each
    sampler_steps: int
    people: tuple[int, ...]  # in one batch of pre-optimisation
    fit_steps: int  # of pre-optimisation
    fit_noises: tuple[int, ...]  # of a step of it
    rows: tuple[int, ...]  # pictures in one pass of the U-Net
    repeats: int  # of what has no steps
    matmul: int  # side of the matrices whose product is the peak


FULL = Amount(40, (1, 4), (4,), 50, (1, 4, 8, 16, 32), 4, (1, 4), (1, 4, 16), 10, 8192)
REDUCED = Amount(3, (1,), (4,), 1, (1, 2), 1, (1, 4), (1, 4), 1, 2048)


class Bench:
    """A base with adapters in it, and the phases that are timed on it, each a method that gives rows."""

    def __init__(self, base: Base, preset: str, amount: Amount, compiled: bool = False) -> None:
        self.base, self.preset, self.amount, self.compiled = base, preset, amount, compiled
        if compiled:
            compile_unet(base)
        self.adapters: Adapters = inject(base.adapted, space_of(base))
        self.generator = torch.Generator().manual_seed(0)
        side = base.picture_size
        self.face = torch.rand(1, 3, side, side, generator=self.generator).to(base.device)
        self.latents = base.noise(1, self.generator)

    def rows(self, phases: Sequence[str]) -> Iterator[Row]:
        """The phases by name; after "plain" the base is without adapters."""
        methods = (
            self._hypernetwork,
            self._encode,
            self._finetune,
            self._picture,
            self._preoptimise,
            self._mixed,
            self._plain,
        )
        for phase, method in zip(PHASES, methods, strict=True):
            if phase in phases:
                yield from method()

    def _hypernetwork(self) -> Iterator[Row]:
        """In float32, as `personalize` runs it."""
        network = random_hypernetwork(PRESETS[self.preset], self.adapters.space, "").to(self.base.device).eval()
        with torch.no_grad():
            yield self._timed(f"encoder of {self.preset}", "picture", lambda: network.encoder(self.face))
        rounds = network.config.rounds
        yield self._timed(f"hypernetwork, {rounds} rounds", "picture", lambda: network.predict(self.face))

    def _encode(self) -> Iterator[Row]:
        with torch.no_grad():
            yield self._timed("VAE encode", "picture", lambda: self.base.encode_pictures(self.face))
            yield self._timed("VAE decode", "picture", lambda: self.base.decode(self.latents))

    def _finetune(self) -> Iterator[Row]:
        """On a prediction on the sites that the hypernetwork speaks of; the set-up is all before the first step.

        One person with each number of noises, then several people in one batch with one noise each: a person's 40
        steps are the batch's, shared.
        """
        cases = [(1, noises) for noises in self.amount.noises] + [(people, 1) for people in self.amount.tuned]
        yield self._timed(SET_UP, "person", lambda: self._begin(*cases[0]))
        for people, noises in cases:
            phase = f"fine-tune, {people_in(people)}{noises_of(noises)}"
            row = self._steps(phase, self._begin(people, noises), self.amount.steps, "step" + " of all" * (people > 1))
            row.facts["40 steps (s)" if people == 1 else "40 steps, a person (s)"] = 40 * row.seconds / people
            yield row

    def _begin(self, people: int, noises: int) -> Finetuning:
        """So many different people, each with a photograph, before the first step."""
        preset, space = FINETUNE["lidb"].config, self.adapters.space
        start = (space if PRESETS[self.preset].blocks else space.rule).start()  # (S, 1, a + b)
        generator = torch.Generator().manual_seed(0)
        predicted = start + 0.01 * torch.randn(people, *start.shape, generator=generator)  # a zero is left out
        latents = self.latents.expand(people, *self.latents.shape[1:])
        config = replace(
            preset,
            objective=replace(preset.objective, noises=noises),
            fit=replace(preset.fit, steps=WARM_UP + self.amount.steps),
        )
        predicted = predicted.to(self.base.device)
        return finetune(self.base, self.adapters, latents, predicted, config, masks=face_masks(latents))

    def _plain(self) -> Iterator[Row]:
        """Never compiled: it is the loop, and the pipeline, that a user writes."""
        self.adapters.eject()
        many = [PlainLora(4, noises=noises) for noises in self.amount.noises if noises > 1]
        for plain in (PlainLora(1), PlainLora(4), PlainLora(4, encodes=True), *many):
            losses = plain.losses(self.base, self.face, self.generator)
            name = f"plain loop, rank {plain.rank}" + ", encodes" * plain.encodes
            name += f", {noises_of(plain.noises)}" * (plain.noises > 1)
            with torch.compiler.set_stance("force_eager"):
                next(losses)  # before which it encodes, whether or not it does so at every step
                row = self._steps(name, losses, self.amount.steps)
            losses.close()
            yield row
        if self.base.second is None:  # of SDXL it is another pipeline
            yield self._plain_picture()

    def _plain_picture(self) -> Row:
        """Classifier-free guidance, as much as ours."""
        pipeline, steps = plain_pipeline(self.base), self.amount.sampler_steps
        prompt, guidance = PROMPT.replace("[V]", self.base.rare_token), DrawConfig.guidance
        noise = self.latents.to(self.base.dtype)

        def work() -> Tensor:
            return plain_picture(pipeline, noise, prompt, steps, guidance)

        with torch.compiler.set_stance("force_eager"):
            return self._timed(PLAIN_PICTURE, "picture", work)

    def _picture(self) -> Iterator[Row]:
        """A picture of one person, from the prompt to the decoded picture.

        Guided alone, the person in both answers, and with likeness, as `draw` does unless told otherwise.
        """
        steps, space = self.amount.sampler_steps, self.adapters.space
        weights = 0.01 * torch.randn(len(space.sites), 1, space.width, generator=self.generator)
        person = Identity(weights, space.info, base="", blocks=space.blocks)
        for kind, likeness in (("guided picture", None), ("picture with likeness", LIKENESS)):
            config = DrawConfig(steps=steps, likeness=likeness)

            def work(config: DrawConfig = config) -> Tensor:
                return draw(self.base, self.adapters, [person], [PROMPT], config)

            name = f"{kind}, {steps} step{'s' * (steps > 1)}"
            yield self._timed(name, "picture", work, {"passes": float(self.base.evaluations(steps))})

    def _preoptimise(self) -> Iterator[Row]:
        """Seconds are of a step of everybody; people per hour by the preset's steps, and by 100."""
        preset = PreoptimizeConfig()
        for people, noises in product(self.amount.people, self.amount.fit_noises):
            fit = replace(preset.fit, steps=WARM_UP + self.amount.fit_steps)
            config = replace(preset, fit=fit, objective=replace(preset.objective, noises=noises))
            pictures = Pictures(self.latents.expand(people, 1, *self.latents.shape[1:]))
            name = f"pre-optimise, batch of {people} x {noises_of(noises)}"
            run = fit_people(self.base, self.adapters, pictures, config)
            try:
                row = self._steps(name, run, self.amount.fit_steps, "step of all")
            except torch.OutOfMemoryError:
                continue
            for steps in sorted({preset.fit.steps, FEW_STEPS}):
                row.facts[f"people an hour, {steps} steps"] = 3600 * people / (row.seconds * steps)
            yield row

    def _mixed(self) -> Iterator[Row]:
        """One pass of the U-Net over N rows that wear nobody (as if merged), one person, and N different ones.

        People are predicted on all sites and have fresh ranks where they are fine-tuned, and are worn as drawing wears
        several.
        """
        base, space, preset = self.base, self.adapters.space, FINETUNE["lidb"].config
        ranks, fresh = 1 + preset.rank_in(space), preset.places_in(space)
        for count in self.amount.rows:
            people = torch.randn(count, len(space.sites), ranks, space.width, generator=self.generator).to(base.device)
            people[:, : fresh.start, 1:] = 0.0
            latents = self.latents.expand(count, *self.latents.shape[1:])
            timestep = torch.zeros((), dtype=torch.long, device=base.device)
            states = torch.zeros(count, *base.encode_prompts([PROMPT]).shape[1:], device=base.device)
            for who, worn in ((", nobody", None), (ONE, people[0]), (EACH, people)):

                def work(latents: Tensor = latents, states: Tensor = states, timestep: Tensor = timestep) -> Tensor:
                    return base.predict(latents, timestep, states)

                with torch.inference_mode(), self.adapters.wear(self.adapters.outfit(worn)):
                    yield self._timed(f"U-Net, batch of {count}{who}", "pass", work)

    def _timed(self, phase: str, unit: str, work: Callable[[], object], facts: dict[str, float] | None = None) -> Row:
        """Some work, after once that is counted and warms up."""
        flops = self._warm_up(work)
        seconds = [seconds_of(work, self.base.device) for _ in range(self.amount.repeats)]
        return Row(phase, unit, median(seconds), flops, peak_bytes(self.base.device), dict(facts or {}))

    def _steps(self, phase: str, run: Iterable[object], count: int, unit: str = "step") -> Row:
        """So many steps of a run, after one that is counted and warms up."""
        steps = iter(run)
        flops = self._warm_up(lambda: next(steps))
        seconds = [seconds_of(lambda: next(steps), self.base.device) for _ in range(count)]
        return Row(phase, unit, median(seconds), flops, peak_bytes(self.base.device))

    def _warm_up(self, work: Callable[[], object]) -> int:
        """FLOPs of some work, done once; once more where the first time compiles, which nobody could count.

        What was compiled for other rows is forgotten: torch gives up after eight kinds of shapes, without a word.
        """
        if self.compiled:
            torch.compiler.reset()
        forget_peak(self.base.device)
        with torch.compiler.set_stance("force_eager"):
            flops = count_flops(work)
        if self.compiled:
            work()
        return flops


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All that is measured, with the device, the peak and, on Stable Diffusion 1.5, the counts."""
    layout = _layout(options.layout)
    with console.status("a random base"):
        base = random_base(layout, options.size, options.a, options.b)
    device, dtype = choose(base, options.device, PRECISIONS.get(options.precision))
    base.to(device, dtype)
    if options.channels_last:
        base.unet.to(memory_format=torch.channels_last)
    amount = amount_of(options, device)
    facts = {
        "device": device_name(device),
        "precision": name_of(dtype),
        "picture": base.picture_size,
        "torch": torch.__version__,
        "reduced": device.type != "cuda",
        "compiled": options.compile,
        "channels-last": options.channels_last,
        "amount": asdict(amount),
    }
    with console.status("the peak of the device"):
        fastest = peaks(device, dtype, amount.matmul)
    peak = max(fastest.values())
    rows: list[Row] = []
    with console.status("the bases of the adapters") as status:
        for row in Bench(base, options.preset, amount, options.compile).rows(options.phases):
            rows.append(row)
            status.update(f"{len(rows)} rows measured, the last {row.phase}: {row.seconds:.3g} s")
            if not console.is_terminal:
                console.print(f"{row.phase}: {row.seconds:.3g} s")
    return facts | {
        "peaks": fastest,
        "peak": peak,
        "rows": [asdict(row) | {"share": row.rate / peak} for row in rows],
        **ratios(rows),
        "totals": totals(rows),
    }


def amount_of(options: argparse.Namespace, device: torch.device) -> Amount:
    """The full amount on CUDA, the reduced one elsewhere, with what the options say otherwise."""
    amount = FULL if device.type == "cuda" else REDUCED
    asked = {name: getattr(options, name) for name in ("steps", "noises", "tuned", "sampler_steps", "people")}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items() if value}
    return replace(amount, **given)


def table(result: dict[str, Any]) -> Table:
    """What people read."""
    title = (
        f"{result['device']}, {result['precision']}, {result['picture']} pixels, {result['peak'] / 1e12:.3g} TFLOP/s"
    )
    shown = Table("phase", "seconds", "of a", "TFLOP", "TFLOP/s", "share", "peak (GB)", "", title=title)
    for row in result["rows"]:
        facts = ", ".join(f"{name} {value:,.3g}" for name, value in row["facts"].items())
        mixed = result["mixed over one"].get(row["phase"].removesuffix(EACH))
        if mixed is not None and row["phase"].endswith(EACH):
            facts = f"{mixed:.2f} x one person"
        ratio = result["plain over ours"].get(row["phase"])
        shown.add_row(
            row["phase"],
            f"{row['seconds']:.3g}",
            row["unit"],
            _tera(row["flops"]),
            _tera(row["flops"] / row["seconds"]),
            f"{row['share']:.0%}",
            f"{row['peak_bytes'] / 1e9:.2f}",
            facts if ratio is None else f"{ratio:.2f} x ours",
        )
    return shown


def _tera(value: float) -> str:
    return f"{value / 1e12:,.3g}"


def counted_table(counted: Iterable[Counted]) -> Table:
    """Counts beside those made by hand."""
    shown = Table("quantity", "counted", "by hand", "difference")
    for one in counted:
        value = f"{one.value:,.1f}" if "GFLOP" in one.name else f"{one.value:,.0f}"
        if one.published is None:
            shown.add_row(one.name, value, "", "")
        else:
            shown.add_row(one.name, value, f"{one.published:,}", f"{one.value / one.published - 1:+.2%}")
    return shown


def count(options: argparse.Namespace, console: Console) -> list[Counted]:
    """FLOPs, parameters and bytes."""
    found: list[Counted] = []
    with console.status("the bases of the adapters") as status:
        for one in counts(_layout(options.layout), options.size, options.a, options.b, options.preset):
            status.update(f"counted: {one.name}")
            found.append(one)
    return found


def main() -> None:
    """Measure or count, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", default="sd1", help="sd1, sd2, or a folder of configurations")
    parser.add_argument("--size", type=int, help="of a picture in pixels; the layout's own")
    parser.add_argument("--preset", choices=list(PRESETS), default="vit-h", help="of the hypernetwork")
    parser.add_argument("--device", help="cpu, cuda, mps; what the hardware does well")
    parser.add_argument("--precision", choices=list(PRECISIONS), help="what the hardware does well")
    parser.add_argument("--channels-last", action="store_true", help="the U-Net's convolutions in that order")
    parser.add_argument("--compile", action="store_true", help="the U-Net; on CUDA through CUDA graphs")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="what is timed")
    parser.add_argument("--steps", type=int, help="of fine-tuning and of the plain loop")
    parser.add_argument("--noises", type=int, nargs="+", help="of a step of fine-tuning")
    parser.add_argument("--tuned", type=int, nargs="+", help="people fine-tuned in one batch")
    parser.add_argument("--sampler-steps", type=int, help="of a picture")
    parser.add_argument("--people", type=int, nargs="+", help="in one batch of pre-optimisation")
    parser.add_argument("--a", type=int, default=100, help="of the LiDB space")
    parser.add_argument("--b", type=int, default=50, help="of the LiDB space")
    parser.add_argument("--counts", action="store_true", help="count FLOPs and parameters, and measure nothing")
    parser.add_argument("--output", "-o", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    console, progress = Console(width=140), Console(stderr=True)
    if options.counts:
        found = count(options, progress)
        console.print(counted_table(found))
        result: Any = [one._asdict() for one in found]
    else:
        result = run(options, progress)
        console.print(table(result))
        for name, value in result["totals"].items():
            console.print(f"{name}: {value:.3g}, from the medians above")
        if result["reduced"]:
            console.print(f"No CUDA: cut to {result['amount']}; every figure of a step is of so few steps.")
    if options.output:
        write_text(options.output, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
