"""Pre-optimisation: fit the LiDB numbers of many people, so that a hypernetwork can learn to predict them (eq. 2).

People are fitted a shard at a time, all of a shard in one batch, from one common start under one common sequence of
noises, timesteps and views. A folder holds the plan, the finished shards and the checkpoint of the shard in progress:
whatever the moment a process dies, running the same again continues at the last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.fitting.fit import Objective, Pictures, fit
from hyperdreambooth.fitting.plan import PLAN_FILE, keep_plan, read_plan
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run, StepReport
from hyperdreambooth.lidb import Adapters, LiDBSpace

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
        return adapters.space if self.blocks else adapters.space.spoken


@dataclass(frozen=True)
class PreoptimizeReport:
    """One step of one shard: `people` of `total` are finished, and those of this shard are at `step`."""

    people: int
    total: int
    shard: int  # from 0
    step: StepReport


@dataclass(frozen=True)
class FittedPeople:
    """The people of a folder that are finished, in the order of the plan."""

    names: tuple[str, ...]
    weights: Tensor  # (N, S, 1, a + b) float32
    start: Tensor  # (S, 1, a + b) float32, common to all of them
    base: str  # fingerprint of the base that they were fitted on
    space: Mapping[str, object]  # that they live in, as `SpaceInfo` names it


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


def preoptimize(
    base: Base,
    adapters: Adapters,
    names: Sequence[str],
    pictures: Pictures,
    folder: Path | str,
    config: PreoptimizeConfig,
) -> Iterator[PreoptimizeReport]:
    """Fit everybody into `folder`, one report per step; stop at any moment, call again to go on.

    Args:
        names: of the N people, each once.
        pictures: V of each; any float type, moved to the base's device a shard at a time.
        folder: made if absent; `load_people` reads what is finished.

    Raises:
        UserError: the folder is of other people or pictures, another base, space or settings (before the first step).
    """
    folder = Path(folder)
    if len(names) != len(pictures.latents) or len(set(names)) != len(names):
        raise ValueError(f"got {len(set(names))} different names for {len(pictures.latents)} people, expected one each")
    data = {"latents": pictures.latents} | ({} if pictures.masks is None else {"masks": pictures.masks})
    keep_plan(folder, _plan(base, adapters, names, config), data)
    if not _start(folder).exists():
        save_tensors(_start(folder), {"start": config.space(adapters).start()})
    for shard, first in enumerate(range(0, len(names), config.shard)):
        people = slice(first, first + config.shard)
        output, checkpoint = _shard(folder, shard), Checkpoint(folder / f"shard-{shard:05d}.run.safetensors")
        if not output.exists():
            masks = None if pictures.masks is None else pictures.masks[people]
            run = fit_people(base, adapters, Pictures(pictures.latents[people], masks), config, checkpoint=checkpoint)
            for step in run:
                yield PreoptimizeReport(first, len(names), shard, step)
            save_tensors(output, {"weights": run.averages["weights"]}, {"people": json.dumps(names[people])})
        Path(checkpoint.path).unlink(missing_ok=True)


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
    save_tensors(_shard(folder, 0), {"weights": weights}, {"people": json.dumps(list(names))})


def load_people(folder: Path | str) -> FittedPeople:
    """The finished people of a folder. Raises UserError where there is no sound plan, or nobody is finished yet."""
    folder = Path(folder)
    if not (folder / PLAN_FILE).is_file():
        raise UserError(f"{folder} has no {PLAN_FILE}, expected pre-optimised people: run preoptimize first")
    plan = read_plan(folder, _FORMAT)
    finished = [load_tensors(path) for path in sorted(folder.glob("shard-?????.safetensors"))]
    if not finished:
        raise UserError(f"{folder} has no finished person yet, expected at least one: let preoptimize finish a shard")
    return FittedPeople(
        names=tuple(name for _, metadata in finished for name in json.loads(metadata["people"])),
        weights=torch.cat([tensors["weights"] for tensors, _ in finished]),  # (N, S, 1, a + b)
        start=load_tensors(_start(folder))[0]["start"],
        base=str(plan["base"]),
        space=dict(plan["space"]) if isinstance(plan["space"], dict) else {},
    )


def _start(folder: Path) -> Path:
    return folder / "start.safetensors"


def _shard(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _plan(base: Base, adapters: Adapters, names: Sequence[str], config: PreoptimizeConfig) -> dict[str, object]:
    """All that decides the numbers: two folders with the same plan hold comparable people."""
    return {
        "format": _FORMAT,
        "base": base.fingerprint,
        "space": asdict(config.space(adapters).info),
        "config": asdict(config),
        "names": list(names),
    }
