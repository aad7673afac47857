"""The commands that make training people, fit them, and train a hypernetwork on them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hyperdreambooth.cli.console import Job
from hyperdreambooth.cli.options import (
    LOAD,
    BaseOption,
    BlocksOption,
    ClusterOption,
    CompileOption,
    DetectorOption,
    DeviceOption,
    FittedBlocksOption,
    FolderOutput,
    JsonOption,
    LowMemoryOption,
    Machine,
    OnlyOption,
    PeopleArgument,
    PrecisionOption,
    SeedOption,
    ViewsOption,
    WorkersOption,
    check_outputs,
    crew_of,
    leave_to_workers,
    load_booth,
    whole_path,
)
from hyperdreambooth.cli.photos import finder_of
from hyperdreambooth.errors import UserError
from hyperdreambooth.files import locked
from hyperdreambooth.folders import LEARNT_FROM, SPLITS, read_names, write_names, write_splits
from hyperdreambooth.progress import Progress

if TYPE_CHECKING:
    import torch

    from hyperdreambooth.cluster import Cluster
    from hyperdreambooth.fitting.preoptimize import FitShard, FittedPeople, PreoptimizeConfig, Schedule
    from hyperdreambooth.fitting.processes import Processes
    from hyperdreambooth.fitting.steps import FitConfig
    from hyperdreambooth.hypernetwork.model import HyperNetwork, HyperNetworkConfig
    from hyperdreambooth.hypernetwork.training import TrainConfig
    from hyperdreambooth.pipeline import HyperDreamBooth

TRAIN, COUNT = "train", "count"
_KEPT = "pictures"  # faces and latents of photographs, in the folder that a command writes


def portraits(
    output: FolderOutput,
    seed: Annotated[int, typer.Option(min=0, help="Of the first person.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="People, with the seeds that follow.")] = 16,
    views: ViewsOption = 4,
    size: Annotated[int, typer.Option(min=16, max=2048, help="Of a picture, in pixels.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """People who do not exist, as PNG files with one JSON file of who is who."""
    check_outputs(output / "people.json")
    with Job(as_json) as job:
        with job.phase(LOAD):
            from hyperdreambooth.people import RENDER, write_portraits
        with job.phase(RENDER):
            written = write_portraits(output, range(seed, seed + count), views, size, job.report)
        job.finish(folder=str(output), people=count, pictures=count * views, bytes=written, seed=seed)


def split(
    people: PeopleArgument,
    output: FolderOutput,
    tuning: Annotated[int, typer.Option(min=0, help="People to tune on.")] = 100,
    reporting: Annotated[int, typer.Option(min=0, help="People to report on.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of who is where.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """People to training.txt, tuning.txt and reporting.txt, lists of names for --only: nobody is in two."""
    check_outputs(*(output / f"{name}.txt" for name in SPLITS))
    with Job(as_json) as job:
        from hyperdreambooth.lidb.basis import random_state
        from hyperdreambooth.people import names_of

        parts = write_splits(names_of(people), tuning, reporting, output, random_state("split", seed))
        job.finish(folder=str(output), **parts, seed=seed)


def preoptimize(
    people: PeopleArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; an interrupted one goes on.")],
    base: BaseOption = "embedded",
    only: OnlyOption = None,
    views: ViewsOption = 4,
    detector: DetectorOption = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each fit.", show_default="the preset's")] = None,
    shard: Annotated[
        int | None, typer.Option(min=1, help="People fitted together: fewer take less memory.", show_default="32")
    ] = None,
    noises: Annotated[
        int | None, typer.Option(min=1, help="Of each person in a step: fewer take less memory.", show_default="4")
    ] = None,
    blocks: BlocksOption = True,
    workers: WorkersOption = None,
    cluster: ClusterOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    low_memory: LowMemoryOption = "off",
    compiled: CompileOption = False,
    as_json: JsonOption = False,
) -> None:
    """People to fitted LiDB numbers, many at once, for a hypernetwork to learn from."""
    check_outputs(output / "plan.json")
    machine = Machine(device, precision, low_memory, compiled)
    with Job(as_json) as job:
        names, finder = None if only is None else read_names(only), finder_of(detector)
        with job.phase(LOAD):
            from hyperdreambooth.fitting import preoptimize as fitting
            from hyperdreambooth.fitting.shards import finished_in, left_out_in
            from hyperdreambooth.people import encode_people, find_people
            from hyperdreambooth.photographs import ENCODE, READ, Keeping
        with fitting.alone_in(output), crew_of(workers, cluster, device) as crew:
            booth = load_booth(job, base, machine=machine)
            config = _fit_config(fitting.PreoptimizeConfig(blocks=blocks), steps, shard, noises)
            space = config.space(booth.adapters)
            job.fewer = f"--shard {max(1, config.shard // 2)}" if config.shard > 1 else "--noises 1"
            with job.phase(READ):
                keeping = Keeping(output / _KEPT)
                chosen = find_people(people, booth.base.picture_size, views, keeping, job.report, names, finder)
            with job.phase(ENCODE):
                pictures = encode_people(booth.base, chosen, job.report)
            samples, total = 0, len(chosen.names)
            if crew is not None:
                leave_to_workers(booth)
            schedule = None if crew is None else _schedule(crew, base, machine, config)
            ours = booth.base, booth.adapters, chosen.names, pictures, output, config, schedule
            with job.phase("fit"):
                for report in fitting.preoptimize(*ours, held=True):
                    samples += config.objective.noises * min(config.shard, total - report.shard * config.shard)
                    job.report(Progress("fit", int(report.done), total, report.step.metrics["denoising"]))
        job.finish(
            folder=str(output),
            people=total - len(left_out := left_out_in(output)),
            left_out=left_out,
            bytes=sum(file.stat().st_size for file in finished_in(output)),
            sites=len(space.sites),
            numbers=space.size(),
            samples=samples,
            seed=config.objective.seed,
        )


def _fit_config(
    config: PreoptimizeConfig, steps: int | None, shard: int | None, noises: int | None
) -> PreoptimizeConfig:
    """The preset with what is asked for; None leaves a setting."""
    return replace(
        config,
        fit=replace(config.fit, steps=steps or config.fit.steps),
        objective=replace(config.objective, noises=noises or config.objective.noises),
        shard=shard or config.shard,
    )


def _schedule(crew: Cluster, base: str, machine: Machine, config: PreoptimizeConfig) -> Schedule:
    """How the people are fitted by a crew: each worker opens the base by itself."""
    from hyperdreambooth.cluster import scatter

    return partial(scatter, partial(_open_fitting, whole_path(base), machine, config), cluster=crew)


def _open_fitting(base: str, machine: Machine, config: PreoptimizeConfig) -> FitShard:
    """What a worker does first."""
    from hyperdreambooth.fitting.preoptimize import fit_shard

    booth = load_booth(Job(quiet=True), base, machine=machine)
    return partial(fit_shard, booth.base, booth.adapters, config)


def train(
    people: PeopleArgument,
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS", help="The folder that preoptimize made of them, or of some.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; an interrupted one goes on.")],
    base: BaseOption = "embedded",
    only: OnlyOption = None,
    preset: Annotated[Literal["embedded", "vit-h", "tiny"], typer.Option(help="Sizes of the network.")] = "embedded",
    blocks: FittedBlocksOption = None,
    views: ViewsOption = 4,
    detector: DetectorOption = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each phase.", show_default="the preset's")] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="People in a batch of both losses, and four times as many in one of the weight loss: fewer take less "
            "memory.",
            show_default="32",
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(min=1, help="Batches whose gradients make up a step.", show_default="1"),
    ] = None,
    styles: Annotated[
        bool, typer.Option("--styles", help="Learn everybody under the filters of all styles too; embedded base.")
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(
            help='Begin with the encoder of this hypernetwork (a file, a folder, or "embedded": it can tell people '
            "apart), and leave it as it is.",
            show_default="random",
        ),
    ] = None,
    versions: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of each picture, at which a frozen encoder (vit-h's, or --encoder) looks once, before; 0 is a new "
            "one in every step.",
        ),
    ] = 0,
    train_encoder: Annotated[
        bool, typer.Option("--train-encoder", help="Train vit-h's encoder too, which is then kept in the result.")
    ] = False,
    seed: SeedOption = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print all settings, count FLOPs and memory from shapes, and stop.")
    ] = False,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    low_memory: LowMemoryOption = "off",
    compiled: CompileOption = False,
    as_json: JsonOption = False,
) -> None:
    """People and the fitted numbers of some of them to a hypernetwork, for personalize --hypernetwork.

    Processes share the work under a launcher: torchrun --standalone --nproc-per-node 2 --no-python hdb train ...
    """
    check_outputs(output / "curve.jsonl")
    from hyperdreambooth.fitting.processes import Processes

    processes = Processes.started()
    held = nullcontext() if dry_run else _alone_in(output, processes)  # a dry run writes nothing
    with Job(as_json, quiet=not processes.main) as job, held:
        names, finder = None if only is None else read_names(only), finder_of(detector)
        booth = load_booth(job, base, machine=Machine(device, precision, low_memory, compiled))
        from hyperdreambooth.fitting.preoptimize import load_people
        from hyperdreambooth.hypernetwork import model, training
        from hyperdreambooth.hypernetwork.features import LOOK, look
        from hyperdreambooth.kept import Kept
        from hyperdreambooth.people import encode_crowd, find_people, split_people
        from hyperdreambooth.photographs import ENCODE, READ, Keeping
        from hyperdreambooth.portraits.captions import STYLES

        fitted = None if dry_run and not weights.exists() else load_people(weights)  # costs may be asked for before
        sizes = _sizes(replace(model.PRESETS[preset], blocks=_speaks_of_blocks(blocks, fitted, booth)), train_encoder)
        if versions and encoder is None and not sizes.encoder.frozen:
            raise UserError(
                f"got --versions {versions} for an encoder that is trained, expected a frozen one: --encoder"
            )
        config = training.TrainConfig(seed=seed, freeze_encoder=encoder is not None, versions=versions)
        config = _train_config(config, steps, batch, accumulate, booth.base.dtype)
        job.fewer = f"--batch {max(1, config.both_batch // 2)} --accumulate 2"
        facts = {
            "folder": str(output),
            "network": asdict(sizes),
            "training": asdict(config),
            "encoder": encoder,
            "seed": seed,
        }
        if dry_run:
            from hyperdreambooth.hypernetwork.cost import training_cost

            if encoder is not None:
                _network(sizes, booth, seed, encoder)  # whether it fits
            with job.phase(COUNT):
                cost = asdict(training_cost(sizes, booth.base, booth.adapters, config))
            job.finish(**facts, cost=cost)
            return
        network = _network(sizes, booth, seed, encoder)
        facts["parameters"] = sum(p.numel() for p in network.parameters())
        samples, phases = 0, config.phases()
        keeping = Keeping(output / _KEPT, (weights / _KEPT,), processes)
        with job.phase(READ):
            chosen = find_people(people, booth.base.picture_size, views, keeping, job.report, names, finder)
        with job.phase(ENCODE):
            side, shown = sizes.encoder.picture_size, STYLES[1:] if styles else ()
            worlds, held_out = split_people(
                booth.base, encode_crowd(booth.base, chosen, shown, job.report, side), weights
            )
        if processes.main:
            write_names(output / LEARNT_FROM, chosen.names)
        del chosen  # whose pictures are in the worlds
        network.to(booth.base.device)
        seen = None
        if versions:
            with job.phase(LOOK):
                kept = Kept(output / _KEPT / "features", (), processes)
                ways = config.jitter, versions, job.report
                seen = {name: look(network.encoder, own.pictures, kept, *ways) for name, own in worlds.items()}
        with job.phase(TRAIN):
            for report in training.train(
                network, booth.base, booth.adapters, worlds, held_out, output, config, processes, seen
            ):
                samples = report.step.samples
                done = list(phases).index(report.phase) + report.step.progress
                job.report(Progress(TRAIN, round(1000 * done / len(phases)), 1000, report.step.loss))
        file = output / training.RESULT_FILE
        job.finish(**facts, hypernetwork=str(file), bytes=file.stat().st_size, samples=samples)


def _speaks_of_blocks(asked: bool | None, fitted: FittedPeople | None, booth: HyperDreamBooth) -> bool:
    """Whether a network predicts the residual blocks too: as its people are fitted, or before they are, as asked for.

    Raises:
        UserError: they are fitted otherwise.
    """
    if fitted is None:
        return asked is not False
    found = fitted.space != asdict(booth.space.rule.info)
    if asked not in (None, found):
        got, there = ("--blocks", "without") if asked else ("--no-blocks", "with")
        raise UserError(
            f"got {got} for people who were fitted {there} the residual blocks, expected the same of both: leave it out"
        )
    return found


def _sizes(sizes: HyperNetworkConfig, train_encoder: bool) -> HyperNetworkConfig:
    """The preset's, whose pretrained encoder is trained where that is asked for."""
    if train_encoder and sizes.encoder.pretrained is None:
        raise UserError("got --train-encoder for a preset whose encoder is trained in any case: leave it out")
    return replace(sizes, encoder=replace(sizes.encoder, trained=train_encoder))


def _alone_in(output: Path, processes: Processes) -> AbstractContextManager[None]:
    """Be the only training in a folder; its other processes leave that to the main one. Raises UserError."""
    if not processes.main:
        return nullcontext()
    taken = UserError(
        f"another hdb train works on {output}, expected one at a time: wait for it, or choose another output folder"
    )
    return locked(output / "train.lock", taken)


def _network(sizes: HyperNetworkConfig, booth: HyperDreamBooth, seed: int, encoder: str | None) -> HyperNetwork:
    """A random hypernetwork, with the encoder of another one, or of the shipped one, where that is asked for.

    Raises:
        UserError: that encoder does not fit.
    """
    from hyperdreambooth.embedded import HYPERNETWORK
    from hyperdreambooth.hypernetwork.encoder import FaceEncoder
    from hyperdreambooth.hypernetwork.model import build_hypernetwork
    from hyperdreambooth.hypernetwork.training import RESULT_FILE

    if encoder is not None and sizes.encoder.pretrained is not None:
        raise UserError(f"got --encoder {encoder} for a preset with a pretrained encoder: leave one of them out")
    network = build_hypernetwork(sizes, booth.space, booth.fingerprint, booth.base.name, seed)
    if encoder is not None and isinstance(network.encoder, FaceEncoder):
        path = HYPERNETWORK if encoder == "embedded" else Path(encoder)
        network.encoder.load(path / RESULT_FILE if path.is_dir() else path)
    return network


def _train_config(
    config: TrainConfig, steps: int | None, batch: int | None, accumulate: int | None, dtype: torch.dtype
) -> TrainConfig:
    """The preset with what is asked for in each phase; None leaves a setting.

    Where the base works in bfloat16, so do the hypernetwork's passes; its parameters stay in float32.
    """

    def phase(fit: FitConfig | None) -> FitConfig | None:
        if fit is None:
            return None
        fit = replace(fit, steps=steps or fit.steps, accumulate=accumulate or fit.accumulate)
        return fit.on(dtype)

    people = batch or config.both_batch
    return replace(
        config,
        weights=phase(config.weights),
        both=phase(config.both),
        weights_batch=people * config.weights_batch // config.both_batch,
        both_batch=people,
    )
