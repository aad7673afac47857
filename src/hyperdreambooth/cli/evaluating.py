"""The commands that compare methods: draw with all of them, and report what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperdreambooth.cli.console import Job
from hyperdreambooth.cli.options import (
    LOAD,
    BaseOption,
    ClusterOption,
    CompileOption,
    DetectorOption,
    DeviceOption,
    FolderOutput,
    JsonOption,
    LowMemoryOption,
    Machine,
    PrecisionOption,
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
from hyperdreambooth.folders import check_apart, read_names
from hyperdreambooth.progress import Progress

if TYPE_CHECKING:
    from hyperdreambooth.baselines.work import Method
    from hyperdreambooth.cluster import Cluster
    from hyperdreambooth.evaluation.prompts import EvaluationSet
    from hyperdreambooth.evaluation.protocol import Evaluation, Share
    from hyperdreambooth.people import People
    from hyperdreambooth.photographs import OnProgress
    from hyperdreambooth.pipeline import HyperDreamBooth

EVERYBODY = "portraits:15900-15999"
_ALL = "0/1"  # shares
_PATIENCE = 120.0  # seconds for a worker whose command was killed to end too


def evaluate(
    output: FolderOutput,
    people: Annotated[
        str, typer.Argument(metavar="[PEOPLE]", help="portraits:FIRST-LAST, or a folder of photographs.")
    ] = EVERYBODY,
    sets: Annotated[str, typer.Option("--set", help="quick, standard or paper: how much is drawn.")] = "quick",
    methods: Annotated[
        str,
        typer.Option(help="Names, with commas between; tables: those of the paper's; ablations: what is left out."),
    ] = "tables",
    count: Annotated[
        int | None, typer.Option("--people", min=1, help="Of these, the first so many.", show_default="the set's")
    ] = None,
    only: Annotated[Path | None, typer.Option(help="File of picture names, one a line, to take of a folder.")] = None,
    detector: DetectorOption = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Draw them after fewer and more steps too, for plots of likeness and time.")
    ] = False,
    together: Annotated[
        int | None,
        typer.Option(min=1, help="People made at once; 1 times each alone.", show_default="what methods can"),
    ] = None,
    share: Annotated[str, typer.Option(help="Which of several processes this is: 0/2, 1/2.")] = _ALL,
    workers: WorkersOption = None,
    cluster: ClusterOption = None,
    base: BaseOption = "embedded",
    hypernetwork: Annotated[
        str, typer.Option(help='"embedded", a file or a training\'s folder, or "none".')
    ] = "embedded",
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    low_memory: LowMemoryOption = "off",
    compiled: CompileOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make and draw people by many methods: a run folder, which goes on wherever it was stopped.

    quick is 10 people in 8 prompts; standard 100 in 16, of costly methods 16;
    paper 100 in 30, ten pictures of each. hdb report makes tables of it.
    """
    check_outputs(output / "plan.json")
    if workers is not None and share != _ALL:
        raise UserError(f"got --share {share} with --workers {workers}, expected one of them: workers take all shares")
    part, machine = _share(share), Machine(device, precision, low_memory, compiled)
    alone = nullcontext() if share != _ALL else _alone_in(output)  # shares are done side by side
    with Job(as_json) as job, alone, crew_of(workers, cluster, device) as crew:
        order = _Order(
            output, people, sets, methods, curve, count, only, detector, together, base, hypernetwork, machine
        )
        opened = order.open(job)
        evaluation = opened.evaluation(part, 0.0 if crew is None else _PATIENCE)
        if crew is None:
            for _, progress in opened.work(evaluation, job.report):
                job.report(progress)
        else:
            evaluation.writer.close()  # its share is a worker's
            leave_to_workers(opened.booth)
            for progress in _scattered(order, opened.total(evaluation), crew):
                job.report(progress)
        run = evaluation.run
        job.finish(
            run=str(output),
            people=len(opened.people.names),
            made=len(run.people()),
            failed=len(run.failures()),
            pictures=len(run.pictures()),
        )


@dataclass(frozen=True)
class _Order:
    """What is asked for, as every worker is told of it; the options of the command."""

    output: Path
    people: str
    sets: str
    methods: str
    curve: bool
    count: int | None
    only: Path | None
    detector: str | None
    together: int | None
    base: str
    hypernetwork: str
    machine: Machine

    def open(self, job: Job) -> _Opened:
        """Check the order, then open all that it needs. Raises UserError."""
        from hyperdreambooth.baselines.methods import method_of, names_of, with_curves
        from hyperdreambooth.evaluation.prompts import set_of

        names = names_of(self.methods.split(","))
        chosen = {name: method_of(name) for name in (with_curves(names) if self.curve else names)}
        size = set_of(self.sets)
        booth = load_booth(job, self.base, self.hypernetwork, self.machine)
        for method in chosen.values():
            method.check(booth)
        most = max(size.people, self.count or 0)
        everybody = _people(job, self, booth.base.picture_size, most)
        check_apart(everybody.names, Path(self.hypernetwork))
        return _Opened(self, booth, everybody, chosen, size)

    def elsewhere(self) -> _Order:
        """The same order for a process that works in another folder."""
        people = self.people
        if not people.startswith("portraits:"):
            kind, mark, rest = people.rpartition(":")  # dataset:folder, or a folder
            people = kind + mark + whole_path(rest)
        return replace(
            self,
            output=self.output.resolve(),
            people=people,
            only=None if self.only is None else self.only.resolve(),
            detector=None if self.detector is None else whole_path(self.detector),
            base=whole_path(self.base),
            hypernetwork=whole_path(self.hypernetwork),
        )


@dataclass(frozen=True)
class _Opened:
    """An order, and what it needs."""

    order: _Order
    booth: HyperDreamBooth
    people: People
    methods: Mapping[str, Method]
    size: EvaluationSet

    def evaluation(self, share: Share, patience: float = 0.0) -> Evaluation:
        """The run, or a share of it."""
        from hyperdreambooth.evaluation.protocol import Evaluation

        order = self.order
        return Evaluation(self.booth, self.people, self.size, order.output, share, order.together, patience)

    def work(self, evaluation: Evaluation, report: OnProgress) -> Iterator[tuple[str, Progress]]:
        """Do what is missing of a share, method after method."""
        for name, method in self.methods.items():
            for progress in evaluation.of(name, method, self._most(name), report):
                yield name, progress

    def total(self, evaluation: Evaluation) -> int:
        """People and pictures of all methods together."""
        of_one = 1 + sum(one.count for one in evaluation.asked)
        return sum(min(self._most(name), len(self.people.names)) * of_one for name in self.methods)

    def _most(self, name: str) -> int:
        from hyperdreambooth.baselines.methods import costly

        return self.order.count or (self.size.costly_people if costly(name) else self.size.people)


def _scattered(order: _Order, total: int, crew: Cluster) -> Iterator[Progress]:
    """Have as many shares done as there are workers; how far all of them are together."""
    from hyperdreambooth.cluster import scatter
    from hyperdreambooth.evaluation.protocol import Share

    shares = [Share(index, crew.workers) for index in range(crew.workers)]
    done = dict[int, int]()
    with closing(scatter(partial(_open_shares, order.elsewhere()), shares, crew)) as told:
        for index, so_far in told:
            done[index] = so_far
            yield Progress("evaluate", sum(done.values()), total)


def _alone_in(output: Path) -> AbstractContextManager[None]:
    """Be the only command that does all of a run. Raises UserError."""
    taken = UserError(f"another command works on all of {output}, expected one: wait for it, or do a --share each")
    return locked(output / "evaluate.lock", taken)


def _open_shares(order: _Order) -> Callable[[Share], Iterator[tuple[int, int]]]:
    """What a worker does first; then shares, saying how much of which is done."""
    opened = order.open(Job(quiet=True))

    def work(share: Share) -> Iterator[tuple[int, int]]:
        evaluation, done = opened.evaluation(share, _PATIENCE), dict[str, int]()
        try:
            for name, progress in opened.work(evaluation, lambda _: None):
                if progress.phase == name:
                    done[name] = progress.done
                    yield share.index, sum(done.values())
        finally:
            evaluation.writer.close()

    return work


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that hdb evaluate made.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write into.", show_default="RUN/report")
    ] = None,
    encoders: Annotated[
        Path | None,
        typer.Option(help="Folder of facenet.safetensors, dino/ and clip/: for photographs at full size."),
    ] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="dino/ and clip/ from the hub, where it lacks them.")] = False,
    times: Annotated[
        Path | None,
        typer.Option(help="A run made with --together 1, of few people: its seconds stand for those of RUN."),
    ] = None,
    quick: Annotated[
        Path | None, typer.Option(help="A run of the quick set by ours, whose seconds stand among the aims.")
    ] = None,
    photographs: Annotated[
        Path | None, typer.Option(help="A run of photographs: all its tables, plots and sheets behind those of RUN.")
    ] = None,
    studies: Annotated[
        list[Path] | None,
        typer.Option(
            "--study", metavar="FOLDER", help="A study's key.json and files of answers to it; may be repeated."
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Above everything.")] = "Results",
    as_json: JsonOption = False,
) -> None:
    """Tables, plots and galleries of a run, beside the paper's figures: results.md, and results.html, one file."""
    folder = run / "report" if output is None else output
    check_outputs(folder / "results.md", folder / "results.html")
    with Job(as_json) as job:
        from hyperdreambooth.evaluation.aims import check_quick
        from hyperdreambooth.evaluation.drawn import alone_seconds
        from hyperdreambooth.evaluation.encoders import Panel
        from hyperdreambooth.evaluation.records import RunFolder
        from hyperdreambooth.evaluation.report import Part, check_report, write_report
        from hyperdreambooth.evaluation.scores import Scoring
        from hyperdreambooth.evaluation.study_tables import Answered

        with job.phase(LOAD):  # what is wrong is found before anything slow
            if fetch and encoders is None:
                raise UserError("got --fetch alone, expected --encoders too: the folder of facenet.safetensors")
            runs = {"": RunFolder(run)} | ({} if photographs is None else {"photographs-": RunFolder(photographs)})
            for prefix, one in runs.items():
                check_report(one, photographs=bool(prefix))
            answered = [Answered.open(study) for study in studies or ()]
            for answers in answered:
                answers.check(list(runs.values()))
            alone = {} if times is None else alone_seconds(RunFolder(times), runs[""])
            timed = None if quick is None else RunFolder(quick)
            if timed is not None:
                check_quick(timed, runs[""])
            panel = Panel.load()
            if encoders is not None:
                from hyperdreambooth.evaluation.pretrained import load_pretrained

                panel = replace(panel, encoders=load_pretrained(encoders, fetch=fetch))
        with job.phase("judge"):
            scorings = {prefix: Scoring(one, panel, {} if prefix else alone) for prefix, one in runs.items()}
            parts = [Part(scoring, list(scoring.all(job.report)), prefix) for prefix, scoring in scorings.items()]
        with job.phase("write"):
            bytes_written = write_report(parts, folder, title, answered, timed)
        methods = len(parts[0].scores) - 1
        job.finish(report=str(folder / "results.html"), methods=methods, bytes=bytes_written)


def _people(job: Job, order: _Order, size: int, most: int) -> People:
    """The people of a run, one picture each, this many at most."""
    from hyperdreambooth.evaluation.subjects import check_photographs, portraits_of
    from hyperdreambooth.people import People, read_people, seeds_asked

    names = None if order.only is None else _names(order.only, Path(order.people).name)
    if (seeds := seeds_asked(order.people, names)) is not None:
        chosen = portraits_of(seeds[:most], size)
        return People(tuple(f"portrait-{seed}" for seed in seeds[:most]), chosen.references.unsqueeze(1))
    with job.phase(LOAD):
        everybody = read_people(order.people, size, 1, job.report, names, most, finder_of(order.detector))
    check_photographs(everybody.names)
    return People(everybody.names, everybody.pictures[:, :1])


def _names(path: Path, folder: str) -> set[str]:
    """The names of a list, of people or pictures: "photo.jpg", or "folder/photo.jpg", which no other folder heeds.

    Raises:
        UserError: all of them are of other folders.
    """
    names = [Path(name) for name in read_names(path)]
    found = {name.name for name in names if name.parent.name in ("", folder)}
    if not found:
        raise UserError(
            f"{path} names nobody of {folder}, expected photo.jpg or {folder}/photo.jpg: give the folder that it is of"
        )
    return found


def _share(text: str) -> Share:
    from hyperdreambooth.evaluation.protocol import Share

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(count)):
        raise UserError(f"got --share {text}, expected INDEX/COUNT such as 0/2")
    return Share(int(index), int(count))
