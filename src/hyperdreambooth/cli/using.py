"""The commands that make people and draw them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import typer

from hyperdreambooth.cli.console import Job
from hyperdreambooth.cli.options import (
    LOAD,
    SAVE,
    SPACE_ALONE,
    BaseOption,
    CompileOption,
    DetectorOption,
    DeviceOption,
    DTypeOption,
    FolderOutput,
    IdentityArgument,
    IdentityOutput,
    JsonOption,
    LowMemoryOption,
    Machine,
    PrecisionOption,
    SamplerOption,
    SeedOption,
    check_outputs,
    load_booth,
)
from hyperdreambooth.cli.photos import read_photos, sheets_beside
from hyperdreambooth.embedded import DEMO_PHOTO
from hyperdreambooth.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from hyperdreambooth.base.memory import LowMemory
    from hyperdreambooth.baselines.work import Method, Work
    from hyperdreambooth.drawing import DrawConfig, Likeness
    from hyperdreambooth.faces import LocatedFace
    from hyperdreambooth.identity import Dtype
    from hyperdreambooth.pipeline import HyperDreamBooth

DRAW = "draw"
DEFAULT_METHOD = "hyperdreambooth"
_KNOWN = {"lora-dreambooth": ("rank",), "lora-dreambooth-rule": ("rank",)}  # what other methods take of its options


class SavedPicture(TypedDict):
    """One picture of `generate` in its JSON object."""

    file: str
    identity: str
    prompt: str
    seed: int
    bytes: int


def personalize(
    photos: Annotated[
        list[Path], typer.Argument(metavar="PHOTO...", help="Pictures of one person's face.", show_default=False)
    ],
    output: IdentityOutput,
    base: BaseOption = "embedded",
    hypernetwork: Annotated[str, typer.Option(help='"embedded", a file, or "none": fine-tuning alone.')] = "embedded",
    method: Annotated[str, typer.Option(help="How to make a person: see below.")] = DEFAULT_METHOD,
    steps: Annotated[
        int | None, typer.Option(min=0, help="0 is the hypernetwork alone.", show_default="the method's: 40")
    ] = None,
    noises: Annotated[
        int | None, typer.Option(min=1, help="Samples through the U-Net per step.", show_default="2")
    ] = None,
    relax: Annotated[
        Literal["lidb", "lora"] | None,
        typer.Option(help="Where the fresh ranks live.", show_default="lora on small bases, or lidb"),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Fresh ranks beside the prediction.",
            show_default="lidb: 6 to 12, as the base has room; lora: 4",
        ),
    ] = None,
    seed: SeedOption = 0,
    dtype: DTypeOption = "fp16",
    sheet: Annotated[Path | None, typer.Option(help="A PNG of the person in eight prompts, to write too.")] = None,
    face: Annotated[
        list[int] | None, typer.Option(min=1, help="Which face, once for each photograph.", show_default="the largest")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="LEFT,TOP,SIDE", help="The face by hand, brows to chin, in pixels.", show_default="found"),
    ] = None,
    detector: DetectorOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    low_memory: LowMemoryOption = "off",
    compiled: CompileOption = False,
    as_json: JsonOption = False,
) -> None:
    """One photograph or several of a person to an identity file: predict, relax, fine-tune.

    Other methods, to compare with: no-hyper, only-hyper, k-1, fixed-rank,
    in-attention, relaxed-lidb, relaxed-2, relaxed-4, relaxed-8, relaxed-full-2,
    relaxed-full, relaxed-full-8,
    one-noise, int8-file, independent-layers (which needs a network of its own);
    dreambooth, dreambooth-agg-1, dreambooth-agg-2, lora-dreambooth (all layers),
    lora-dreambooth-rule (the paper's layers), lidb-dreambooth,
    textual-inversion, e4t.
    They know --steps, those of LoRA --rank; all else is hyperdreambooth's.
    """
    numbered = sheets_beside(output, len(photos))
    read = [*photos, Path(hypernetwork), *([] if detector is None else [Path(detector)])]
    check_outputs(output, sheet, *numbered, inputs=read)
    with Job(as_json) as job:
        chosen = _method(method, steps, {"noises": noises, "relax": relax, "rank": rank})
        _check_dtype(method, chosen, dtype)
        faces = read_photos(job, photos, numbered, face or (), box or (), detector)
        booth = load_booth(job, base, hypernetwork, Machine(device, precision, low_memory, compiled))
        job.needs = _needs_of_fit(booth, low_memory, chosen)
        _make_person(job, booth, faces, chosen, seed, output, sheet, dtype)


def _method(name: str, steps: int | None, ours: Mapping[str, Any]) -> Method:
    """The method of a name, with what is asked for in the place of its own. Raises UserError for what it has not."""
    from hyperdreambooth.baselines.methods import OURS, LiDB, method_of

    method, given = method_of(name), {key: value for key, value in ours.items() if value is not None}
    if given:
        known = ours.keys() if name == OURS else _KNOWN.get(name, ())
        if (foreign := given.keys() - set(known)) or not isinstance(method, LiDB):
            options = ", ".join(f"--{key}" for key in given if key in foreign)
            others = f"{OURS} alone" if name not in _KNOWN else f"{OURS} alone, and --rank here"
            raise UserError(f"got {options} for --method {name}, expected them for {others}: leave them out")
        method = replace(method, config=replace(method.config, **given))
    return method if steps is None else method.with_steps(steps)


def _needs_of_fit(
    booth: HyperDreamBooth, mode: LowMemory, method: Method
) -> Callable[[], Mapping[LowMemory, int]] | None:
    """What estimates the memory that our own methods need to make a person; None for others, which have more to fit."""
    from hyperdreambooth.baselines.methods import LiDB

    if not isinstance(method, LiDB):
        return None
    noises = method.config.noises

    def needs() -> Mapping[LowMemory, int]:
        from hyperdreambooth.footprint import needs_of_fit  # what it loads is not for a work that goes well

        return needs_of_fit(booth, mode, noises)

    return needs


def _needs_of_drawing(
    booth: HyperDreamBooth, mode: LowMemory, pictures: int, config: DrawConfig
) -> Callable[[], Mapping[LowMemory, int]]:
    """What estimates the memory that it takes to draw so many pictures."""

    def needs() -> Mapping[LowMemory, int]:
        from hyperdreambooth.footprint import needs_of_drawing

        return needs_of_drawing(booth, mode, min(pictures, config.batch), len(config.answers()))

    return needs


def _check_dtype(name: str, method: Method, dtype: Dtype) -> None:
    """Raise UserError, before any work, for whole weights in eight bits."""
    from hyperdreambooth.baselines.work import Tuning

    if isinstance(method, Tuning) and dtype == "int8":
        raise UserError(f"got --dtype int8 for --method {name}, whose people are whole weights, expected fp16 or fp32")


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write into.")] = Path("demo"),
    as_json: JsonOption = False,
) -> None:
    """The main job on a shipped picture of somebody whom the training never saw."""
    identity, sheet = output / "alice.safetensors", output / "alice.png"
    check_outputs(identity, sheet)
    with Job(as_json) as job:
        faces = read_photos(job, [DEMO_PHOTO], sheets_beside(identity, 1))
        booth = load_booth(job, "embedded", "embedded")
        _make_person(job, booth, faces, _method(DEFAULT_METHOD, None, {}), 0, identity, sheet)


def generate(
    identities: Annotated[list[Path], typer.Argument(metavar="IDENTITY", help="Files.", show_default=False)],
    prompts: Annotated[list[str], typer.Option("--prompt", help="What to draw; may be repeated.", show_default=False)],
    output: FolderOutput,
    base: BaseOption = "embedded",
    pairs: Annotated[bool, typer.Option("--pairs", help="First with first, not every one with every one.")] = False,
    count: Annotated[int, typer.Option(min=1, help="Pictures of each pair.")] = 1,
    seed: SeedOption = 0,
    strength: Annotated[float, typer.Option(help="0 is the base, 1 the person.")] = 1.0,
    sampler: SamplerOption = "own",
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler.")] = 25,
    guidance: Annotated[float, typer.Option(help="Towards the prompt, classifier-free; 1 is none.")] = 5.0,
    likeness: Annotated[
        float | None,
        typer.Option(
            help="Towards the person; 2, with a guidance of 7, where a hat should show.",
            show_default="3, and 5 of who was not fine-tuned",
        ),
    ] = None,
    as_exported: Annotated[
        bool, typer.Option("--as-exported", help="Without --likeness: what other programs draw of an export.")
    ] = False,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    low_memory: LowMemoryOption = "off",
    compiled: CompileOption = False,
    as_json: JsonOption = False,
) -> None:
    """Identities and prompts to pictures, different people in one batch.

    [V] in a prompt is the person. The embedded base knows

    "a [V] face", "an old [V] face", "a photo of a [V] face" and
    "a portrait of a [V] face", one of its two worlds;

    a pencil sketch, a watercolor, a bronze statue, pixel art, neon art,
    pop art, a comic drawing, a doll, an animation character of a [V] face,
    and "a photo of a [V] face in watercolor style";

    after any of these: with blue hair, with red hair, wearing a hat,
    wearing sunglasses, smiling (which it draws in a third);

    and then: at the beach, in the snow, in a city at night, in space,
    in a forest; all of these learnt from portraits alone.
    """
    check_outputs(output / "picture.png")
    plan = _plan(identities, prompts, pairs)
    with Job(as_json) as job:
        booth = load_booth(job, base, machine=Machine(device, precision, low_memory, compiled, sampler))
        from hyperdreambooth.drawing import DrawConfig

        towards: Likeness = None if as_exported else "usual" if likeness is None else likeness
        config = DrawConfig(count, seed, steps, guidance, towards, strength)
        job.needs = _needs_of_drawing(booth, low_memory, count * len(plan), config)
        people = {path: booth.open_person(path) for path in identities}
        with job.phase(DRAW):
            drawn = booth.draw([people[path] for path, _ in plan], [text for _, text in plan], config, job.report)
        with job.phase(SAVE):
            files = [_save(output, index, drawn[index], *plan[index // count], config) for index in range(len(drawn))]
        job.finish(
            folder=str(output),
            count=len(files),
            bytes=sum(file["bytes"] for file in files),
            samples=config.samples([people[path] for path, _ in plan], booth.base),
            seed=seed,
            pictures=files,
        )


def inspect(identity: IdentityArgument, as_json: JsonOption = False) -> None:
    """What an identity file holds and how it was made."""
    with Job(as_json) as job:
        with job.phase(LOAD):
            from dataclasses import asdict

            from hyperdreambooth.drawing import read_person
            from hyperdreambooth.identity import Identity

            person = read_person(identity)
        facts: dict[str, object]
        if isinstance(person, Identity):
            relaxed = "in the bases" if person.lora is None else "in full space"
            facts = {"sites": person.sites, "ranks": person.ranks, "relaxed": relaxed, "space": asdict(person.space)}
        else:
            facts = {"tensors": len(person.tensors)}
        job.finish(
            identity=str(identity),
            bytes=identity.stat().st_size,
            base=person.base_name,
            fingerprint=person.base,
            prompt=person.prompt,
            rare_token=person.rare_token,
            class_noun=person.class_noun,
            numbers=person.numbers,
            **facts,
            how=dict(person.how),
        )


def mix(
    first: Annotated[Path, typer.Argument(metavar="A", help="An identity file.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    output: IdentityOutput,
    weight: Annotated[float, typer.Option(help="0 is A, 1 is B.")] = 0.5,
    base: BaseOption = "embedded",
    dtype: DTypeOption = "fp16",
    as_json: JsonOption = False,
) -> None:
    """A person between two."""
    check_outputs(output, inputs=[first, second])
    with Job(as_json) as job:
        booth = load_booth(job, base, machine=SPACE_ALONE)
        from hyperdreambooth import identity

        person = identity.mix(booth.open(first), booth.open(second), weight, booth.space)
        with job.phase(SAVE):
            size = person.save(output, dtype)
        job.finish(
            identity=str(output),
            bytes=size,
            base=booth.base.name,
            sites=person.sites,
            ranks=person.ranks,
            numbers=person.numbers,
        )


def _make_person(
    job: Job,
    booth: HyperDreamBooth,
    faces: Sequence[LocatedFace],
    method: Method,
    seed: int,
    output: Path,
    sheet: Path | None,
    dtype: Dtype = "fp16",
) -> None:
    """Personalise, save, draw the sheet if there is to be one, and say what was done."""
    work = method.personalizing(booth, [faces], seed)
    for report in work:
        job.report(report)
    job.add_seconds(work.seconds)
    job.needs = None
    (person,) = work.people
    with job.phase(SAVE):
        size = person.save(output, dtype)
    sheet_bytes, samples = (0, 0) if sheet is None else _draw_sheet(job, booth, work, seed, faces[0], sheet, size)
    job.finish(
        identity=str(output),
        bytes=size,
        sheet=None if sheet is None else str(sheet),
        sheet_bytes=None if sheet is None else sheet_bytes,
        method=person.how["method"],
        base=booth.base.name,
        sites=getattr(person, "sites", None),
        ranks=getattr(person, "ranks", None),
        numbers=person.numbers,
        samples=work.samples,
        sheet_samples=None if sheet is None else samples,
        seed=seed,
    )


def _draw_sheet(
    job: Job, booth: HyperDreamBooth, work: Work, seed: int, face: LocatedFace, sheet: Path, size: int
) -> tuple[int, int]:
    """Draw and write the sheet: its bytes, and the samples that went through the U-Net."""
    from hyperdreambooth.drawing import DrawConfig
    from hyperdreambooth.sheet import save_png
    from hyperdreambooth.showcase import showcase

    config, how = DrawConfig(seed=seed), work.people[0].how
    made = f"{how['steps']} steps of {how.get('noises', 0)} noises" if how["steps"] else "no steps"
    captions = [f"{made}, seed {seed}", f"{sum(work.seconds.values()):.1f} s, {size:,} bytes"]
    with job.phase(DRAW):
        image, samples = showcase(booth, work, face, config, captions=captions, progress=job.report)
        written = save_png(sheet, image)
    return written, samples


def _plan(identities: Sequence[Path], prompts: Sequence[str], pairs: bool) -> list[tuple[Path, str]]:
    """Who is drawn with which prompt."""
    if not pairs:
        return [(path, text) for path in identities for text in prompts]
    if len(identities) != len(prompts):
        raise UserError(f"got {len(identities)} identities and {len(prompts)} prompts, expected as many with --pairs")
    return list(zip(identities, prompts, strict=True))


def _save(folder: Path, index: int, picture: Tensor, identity: Path, prompt: str, config: DrawConfig) -> SavedPicture:
    """Write one picture under a name that says whose it is, of what, from which seed."""
    from hyperdreambooth.sheet import save_png, to_image

    pair, k = divmod(index, config.count)
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
    who, seed = identity.stem.encode()[:100].decode(errors="ignore"), config.seed + k  # names end at 255 bytes
    file = folder / f"{pair:03d}-{who}-{words}-{seed}.png"
    size = save_png(file, to_image(picture))
    return {"file": str(file), "identity": str(identity), "prompt": prompt, "seed": seed, "bytes": size}
