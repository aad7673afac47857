"""Pre-optimisation: fit the LiDB numbers of many people, so that a hypernetwork can learn to predict them (eq. 2).

People are fitted a shard at a time, all of a shard in one batch, from one common start under one common sequence of
noises, timesteps and views. A folder holds the plan, the finished shards and the checkpoints of those in progress
(`shards.py`): whatever the moment a process dies, running the same again continues at the last checkpoint. Who fits
which shard, and on which machine, is nobody's business here: a schedule may be given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hyperdreambooth.base.hardware import name_of
from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import NotFinite, UserError, WrongBase
from hyperdreambooth.files import load_tensors, locked, save_tensors
from hyperdreambooth.fitting.fit import Objective, Pictures, fit
from hyperdreambooth.fitting.plan import PLAN_FILE, keep_plan, plan_digest, read_plan
from hyperdreambooth.fitting.shards import (
    Manifest,
    Shard,
    ShardEntry,
    check_unchanged,
    deal,
    finished_in,
    left_out_of,
    save_people,
    shard_file,
    tidy,
)
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run, StepReport
from hyperdreambooth.lidb import Adapters, LiDBSpace
from hyperdreambooth.progress import log

_FORMAT = "hyperdreambooth-people-1"


@dataclass(frozen=True)
class PreoptimizeConfig:
    """How people are fitted. Everything but `shard` decides the numbers; `shard` decides how many fit in memory."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=200, lr=1e-2, average_last=0.25))
    objective: Objective = field(default_factory=lambda: Objective(noises=4, pull=1e-5))
    shard: int = 32  # people in one batch
    blocks: bool = True  # whether they are fitted in the residual blocks' layers too

    def space(self, adapters: Adapters) -> LiDBSpace:
        """The space that the people are fitted in, of the whole one that the adapters have."""
        return adapters.space if self.blocks else adapters.space.rule


@dataclass(frozen=True)
class PreoptimizeReport:
    """One step of one shard: `people` of `total` are finished or left out, and those of this shard are at `step`."""

    people: int
    total: int
    shard: int  # from 0
    step: StepReport
    done: float  # of `total`, where people in the making count by the share of their steps


@dataclass(frozen=True)
class FittedPeople:
    """The people of a folder that are finished, in the order of the plan."""

    names: tuple[str, ...]
    weights: Tensor  # (N, S, 1, a + b) float32
    start: Tensor  # (S, 1, a + b) float32, common to all of them
    base: str  # fingerprint of the base that they were fitted on
    space: Mapping[str, object]  # that they live in, as `SpaceInfo` names it
    left_out: Mapping[str, str] = field(default_factory=dict)  # whose fit is not finite, by name, and why


def fit_people(
    base: Base,
    adapters: Adapters,
    pictures: Pictures,
    config: PreoptimizeConfig,
    *,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Fit N people in one batch, from the common start: `run.averages["weights"]`, (N, S, 1, a + b), is the result."""
    start = config.space(adapters).start().to(base.device)  # (S, 1, a + b)
    weights = start.repeat(len(pictures.latents), 1, 1, 1).requires_grad_()  # (N, S, 1, a + b)
    return fit(
        base,
        {"weights": weights},
        lambda: adapters.use(weights),
        pictures,
        config.objective,
        config.fit,
        checkpoint=checkpoint,
    )


def fit_shard(
    base: Base, adapters: Adapters, config: PreoptimizeConfig, shard: Shard
) -> Iterator[tuple[int, StepReport | ShardEntry]]:
    """Fit the people of one shard and write them; says the shard's number with each step, and at last with its entry.

    It goes on at the shard's checkpoint. Of several processes that try, one fits, and the others find it done.

    Whoever has no finite fit is left out, and the others begin anew: they get what they would have got without them.

    Raises:
        WrongBase: this is not the base of the plan (another machine may have another one under the same name).
        NotFinite: of several people nobody has a finite fit, which is the settings' fault, or nobody can be named.
        UserError: the shard's file is there already, or its checkpoint, and of other settings.
        DiskFull, WorkError: the disk; the checkpoint before stays.
    """
    if base.fingerprint != shard.base:
        raise WrongBase(
            f'{shard.folder} is fitted on base {shard.base[:8]}..., a worker has "{base.name}" '
            f"({base.fingerprint[:8]}...): put the same base on all machines"
        )
    with shard.fitting():
        shard.check()
        while not shard.output.exists():
            left_out = shard.left_out()
            rows = [row for row, name in enumerate(shard.names) if name not in left_out]
            if not rows:
                shard.save(config.space(adapters).start().unsqueeze(0)[:0])  # (0, S, 1, a + b)
                break
            pictures = shard.pictures.of(rows) if left_out else shard.pictures
            run = fit_people(base, adapters, pictures, config, checkpoint=shard.checkpoint)
            try:
                for step in run:
                    yield shard.number, step
                if not run.parameters["weights"].isfinite().all():
                    raise NotFinite(f"the numbers after step {run.step} are not finite, expected finite ones")
            except NotFinite as error:
                found = _not_finite(base, adapters, pictures, config, run)
                if not found or len(found) == len(rows) > 1:
                    raise
                shard.leave_out({shard.names[rows[number]]: str(error) for number in found})
            else:
                shard.save(run.averages["weights"])
        shard.clear()
    yield shard.number, ShardEntry.of(shard.output, len(shard.names))


def _not_finite(base: Base, adapters: Adapters, pictures: Pictures, config: PreoptimizeConfig, run: Run) -> list[int]:
    """The rows of those whose own fit is not finite where the fit of all, `run`, stands: each is tried alone."""
    found = list[int]()
    for row, weights in enumerate(run.parameters["weights"].detach()):  # (S, 1, a + b)
        alone = fit_people(base, adapters, pictures.of([row]), config)
        with torch.no_grad():
            alone.parameters["weights"].copy_(weights)
        alone.step = run.step
        if not alone.is_finite():
            found.append(row)
    return found


FitShard = Callable[[Shard], Iterator[tuple[int, StepReport | ShardEntry]]]
"""`fit_shard` with everything that does not change from shard to shard."""

Schedule = Callable[[Sequence[Shard]], Generator[tuple[int, StepReport | ShardEntry]]]
"""Has every shard fitted by `fit_shard`, somewhere, and passes on what that says, in any order; closed, it stops."""


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Be the only process that deals out the people of a folder. Raises UserError."""
    taken = UserError(
        f"another process fits people into {folder}, expected one at a time: wait for it, or choose another folder"
    )
    return locked(folder / "preoptimize.lock", taken)


def preoptimize(
    base: Base,
    adapters: Adapters,
    names: Sequence[str],
    pictures: Pictures,
    folder: Path | str,
    config: PreoptimizeConfig,
    schedule: Schedule | None = None,
    held: bool = False,
) -> Iterator[PreoptimizeReport]:
    """Fit everybody into `folder`, one report per step; stop at any moment, call again to go on.

    Args:
        names: of the N people, each once.
        pictures: V of each; any float type, moved to the base's device a shard at a time.
        folder: made if absent; `load_people` reads what is finished.
            Whose fit is not finite is left out, with a warning; `load_people` names them.
        schedule: None fits the shards here, one after the other. Where does not decide the numbers, to the last bit on
            machines that compute alike.
        held: whether the caller is `alone_in` the folder already, as who reads people for long should be before.

    Raises:
        UserError: the folder, or a file in it, is of other people or pictures, another base, precision, space or
            settings, or another process fits into it (before the first step).
        DiskFull, WorkError: while iterating; what is finished stays.
    """
    folder = Path(folder)
    if len(names) != len(pictures.latents) or len(set(names)) != len(names):
        raise ValueError(f"got {len(set(names))} different names for {len(pictures.latents)} people, expected one each")
    with nullcontext() if held else alone_in(folder):
        data = {"latents": pictures.latents} | ({} if pictures.masks is None else {"masks": pictures.masks})
        begun = any(folder.glob("shard-*.safetensors"))
        keep_plan(folder, _plan(base, adapters, names, config), data, begun=begun)
        start = config.space(adapters).start()  # (S, 1, a + b)
        if not begun or not _start(folder).exists():
            save_tensors(_start(folder), {"start": start})
        shards, manifest = deal(folder, names, pictures, config.shard, base.fingerprint), Manifest(folder)
        missing = manifest.check(shards, start.shape)
        here = (news for shard in missing for news in fit_shard(base, adapters, config, shard))
        with closing(here if schedule is None else schedule(missing)) as told:
            yield from _reports(told, shards, manifest)
        tidy(folder)


def _reports(
    told: Iterator[tuple[int, StepReport | ShardEntry]], shards: Sequence[Shard], manifest: Manifest
) -> Iterator[PreoptimizeReport]:
    """Of what each shard says of itself, how far all of them are together; who is finished goes into the manifest."""
    total, begun = sum(len(shard.names) for shard in shards), dict[int, float]()  # people's worth of steps, by shard
    for number, news in told:
        people = sum(entry.settled for entry in manifest.entries.values())
        if isinstance(news, ShardEntry):
            begun.pop(number, None)
            manifest.add(news)
            for name, reason in news.left_out.items():
                log.warning("%s cannot be fitted and is left out: %s", name, reason)
            continue
        begun[number] = len(shards[number].names) * news.progress
        yield PreoptimizeReport(people, total, number, news, people + sum(begun.values()))


def write_people(
    folder: Path | str,
    names: Sequence[str],
    weights: Tensor,
    base: Base,
    space: LiDBSpace,
    config: Mapping[str, object],
) -> None:
    """Write people whose numbers come from elsewhere, (N, S, 1, a + b) of `space`, as `load_people` reads them.

    Raises:
        UserError: the folder holds other people, or numbers that came by another way (`config`).
    """
    folder = Path(folder)
    plan = {"format": _FORMAT, "base": base.fingerprint, "space": asdict(space.info), "config": dict(config)}
    keep_plan(folder, {**plan, "names": list(names)}, {"weights": weights})
    save_tensors(_start(folder), {"start": space.start()})
    save_people(shard_file(folder, 0), names, weights, {}, plan_digest(folder))


def load_people(folder: Path | str) -> FittedPeople:
    """The finished people of a folder.

    Raises:
        UserError: there is no sound plan, a shard is of another one, or nobody is finished yet.
        BadFile: a shard has changed since.
    """
    folder = Path(folder)
    if not (folder / PLAN_FILE).is_file():
        raise UserError(f"{folder} has no {PLAN_FILE}, expected pre-optimised people: run preoptimize first")
    plan = read_plan(folder, _FORMAT)
    check_unchanged(folder)
    finished = [load_tensors(path) for path in finished_in(folder)]
    names = tuple(name for _, metadata in finished for name in json.loads(metadata["people"]))
    if not names:
        raise UserError(f"{folder} has no finished person yet, expected at least one: let preoptimize finish a shard")
    return FittedPeople(
        names=names,
        weights=torch.cat([tensors["weights"] for tensors, _ in finished]),  # (N, S, 1, a + b)
        start=load_tensors(_start(folder))[0]["start"],
        base=str(plan["base"]),
        space=dict(plan["space"]) if isinstance(plan["space"], dict) else {},
        left_out={name: why for _, metadata in finished for name, why in left_out_of(metadata).items()},
    )


def _start(folder: Path) -> Path:
    return folder / "start.safetensors"


def _plan(base: Base, adapters: Adapters, names: Sequence[str], config: PreoptimizeConfig) -> dict[str, object]:
    """All that decides the numbers: two folders with the same plan hold comparable people."""
    return {
        "format": _FORMAT,
        "base": base.fingerprint,
        "space": asdict(config.space(adapters).info),
        "config": asdict(config),
        "names": list(names),
        **({} if base.dtype == torch.float32 else {"precision": name_of(base.dtype)}),
    }
