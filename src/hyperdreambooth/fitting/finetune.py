"""Rank-relaxed fast fine-tuning: sharpen predicted people on their photographs, in some forty steps.

The prediction stays frozen and fresh factors of higher rank are trained beside it: in bases of the same kind ("lidb"),
where the result stays a small LiDB person, or in full space ("lora", the paper's). "none" trains the prediction itself.

They are trained in the residual blocks of the U-Net's way up: what is learnt there from one plain photograph shows in
every style, what is learnt in the attention much less, and the blocks before add nothing (docs/notes.md). So the
backward pass of a step ends where the way up begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperdreambooth.base.hardware import holds_people
from hyperdreambooth.base.model import Base
from hyperdreambooth.fitting.fit import Objective, Pictures, fit
from hyperdreambooth.fitting.steps import FitConfig, Run, StepReport
from hyperdreambooth.lidb import Adapters, LiDBSpace, LoRALayout

Relax = Literal["lidb", "lora", "none"]
# The residual blocks of the U-Net's way up, all residual blocks, the sites of the 192-layer rule, or these and those.
Where = Literal["up", "blocks", "rule", "all"]
Compose = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # from what is trained to what is worn

_ROOM = 115_200  # numbers of a person in the bases: those of the paper's, four ranks of 150 in 192 layers
_ROOM_IN_FULL = 200_000  # of a person in full space, as many bytes in int8


@dataclass(frozen=True)
class FinetuneConfig:
    """How people are fine-tuned."""

    relax: Relax = "lidb"
    rank: int | None = None  # fresh ranks beside the prediction; None: see `rank_in`; without meaning for relax "none"
    where: Where = "up"  # the fresh factors are
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=40, lr=1.4e-2, schedule="cosine"))
    lr_alone: float | None = None  # learning rate of people whom nobody predicted; None is that of `fit`
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self) -> None:
        if self.relax == "lidb" and self.where == "all":
            raise ValueError('got where="all" for fresh ranks in the bases, expected "up", "blocks" or "rule"')

    def rank_in(self, space: LiDBSpace) -> int:
        """The fresh ranks of people in this space: where nothing is said, as many as `_ROOM` holds.

        At least 6 and at most 12: fewer lose likeness, more were not tried (docs/notes.md).
        """
        if self.rank is not None:
            return self.rank
        of_a_rank = len(space.sites[self.places_in(space)]) * space.width
        return min(max((_ROOM - len(space.sites) * space.width) // of_a_rank, 6), 12)

    def places_in(self, space: LiDBSpace) -> slice:
        """The sites of this space that have fresh factors."""
        rule, everywhere = len(space.rule.sites), len(space.sites)
        if self.where == "all":
            return slice(0, everywhere)
        if not _in_blocks(space, self):
            return slice(0, rule)
        return slice(everywhere - (space.way_up or space.blocks) if self.where == "up" else rule, everywhere)

    def fit_of(self, predicted: bool) -> FitConfig:
        """The steps of people who begin at a prediction, or from nobody: they have farther to go."""
        return self.fit if predicted or self.lr_alone is None else replace(self.fit, lr=self.lr_alone)


@dataclass(frozen=True)
class Preset:
    """A configuration and what it was measured to give."""

    config: FinetuneConfig
    measured: str


PRESETS = {
    "lidb": Preset(
        FinetuneConfig(relax="lidb"),
        "an embedded base before, 12 ranks in all residual blocks, 100 reporting portraits and photographs: 93 % and "
        "99 % identified in the plain style, 68 % and 77 % over all eight",
    ),
    "lora": Preset(
        FinetuneConfig(relax="lora", rank=4, fit=FitConfig(steps=40, lr=1e-2, schedule="cosine")),
        "embedded base, 100 reporting portraits and photographs: 96 % and 99 % identified in the plain style, "
        "89 % and 94 % over all eight",
    ),
    "none": Preset(
        FinetuneConfig(relax="none", fit=FitConfig(steps=40, lr=3e-2, schedule="cosine")),
        "embedded base, 16 reporting portraits at 2e-2, 16 prompts: 73 % identified of 100 (lora: 89 %)",
    ),
}


def relaxation_in(space: LiDBSpace) -> Relax:
    """Where people of this space are fine-tuned if nothing is said: in full space, where they stay small in it."""
    fresh = _layout(space, PRESETS["lora"].config)
    return "lora" if space.blocks and space.size() + fresh.size <= _ROOM_IN_FULL else "lidb"


class Finetuning:
    """N people being fine-tuned: iterate to take the steps; `weights` and `lora` are the people as they are by now."""

    def __init__(self, run: Run, compose: Compose) -> None:
        self._run, self._compose = run, compose

    def __iter__(self) -> Iterator[StepReport]:
        return iter(self._run)

    @property
    def weights(self) -> Tensor:
        """The people's LiDB numbers, (N, S, R, a + b), the prediction's ranks first."""
        weights, _ = self._compose(self._run.averages["fresh"].detach())
        return weights.clone()

    @property
    def lora(self) -> Tensor | None:
        """The people's full-space factors (N, size) as in `LoRALayout`; None unless relax is "lora"."""
        _, lora = self._compose(self._run.averages["fresh"].detach())
        return None if lora is None else lora.clone()


def finetune(
    base: Base,
    adapters: Adapters,
    latents: Tensor,
    prediction: Tensor | None,
    config: FinetuneConfig,
    *,
    masks: Tensor | None = None,
) -> Finetuning:
    """Fine-tune N people in one batch on their photographs: an iterable of StepReports that holds the result.

    Args:
        latents: (N, C, h, w), one encoded photograph of each, or (N, V, C, h, w), several.
        prediction: (N, S, R, a + b) from the hypernetwork; None starts from nobody: where relax is "lidb", with `rank`
            fresh ranks on all sites, or with 1 + rank on those of the rule, so that they come out as large as others.
        masks: (N, 1, h, w) or (N, V, 1, h, w), how much each place in a photograph counts.
    """
    if prediction is not None and (prediction.dim() != 4 or len(prediction) != len(latents)):
        shape = tuple(prediction.shape)
        raise ValueError(f"got a prediction of shape {shape} for {len(latents)} photographs, expected (N, S, R, a + b)")
    frozen, fresh = _begin(adapters.space, len(latents), prediction, config)
    frozen = None if frozen is None else frozen.detach().to(base.device)
    compose = partial(_compose, adapters.space, config, frozen)
    fresh = fresh.detach().to(base.device, copy=True).contiguous().requires_grad_()

    wear = _wearing(base, adapters, config, frozen, fresh, compose)
    if latents.dim() == 4:
        latents, masks = latents.unsqueeze(1), None if masks is None else masks.unsqueeze(1)  # V = 1
    pictures = Pictures(latents, masks)
    reads_the_same = frozen is not None and _in_blocks(adapters.space, config)  # the text encoder has nothing fresh
    states = _states(base, wear, len(fresh), config) if reads_the_same else None
    steps = config.fit_of(prediction is not None)
    run = fit(base, {"fresh": fresh}, wear, pictures, config.objective, steps, states=states)
    return Finetuning(run, compose)


def _states(
    base: Base, wear: Callable[[], AbstractContextManager[None]], people: int, config: FinetuneConfig
) -> Tensor:
    """(N, L, D) of the prompt, as the people's prediction reads it."""
    with torch.no_grad(), wear():
        return base.encode_prompts([config.objective.prompt] * people)


def _wearing(
    base: Base, adapters: Adapters, config: FinetuneConfig, frozen: Tensor | None, fresh: Tensor, compose: Compose
) -> Callable[[], AbstractContextManager[None]]:
    """What puts the people on, as they are by now.

    The frozen part of one person is in the layers' weights already, where these can hold people, which saves a fifth of
    a step's time. Elsewhere, or of several people, it is composed once and worn beside.
    """
    places = config.places_in(adapters.space)
    if frozen is None:
        return lambda: adapters.use(*compose(fresh))
    merged = len(frozen) == 1 and holds_people(base)
    under = adapters.weights_with(frozen[0]) if merged else None
    beside = None if merged else adapters.outfit(frozen)
    if config.relax == "lora":
        return lambda: adapters.use(None, fresh, lora_at=places, under=under, beside=beside)
    return lambda: adapters.use(fresh, first=places.start, under=under, beside=beside)


def _begin(
    space: LiDBSpace, people: int, prediction: Tensor | None, config: FinetuneConfig
) -> tuple[Tensor | None, Tensor]:
    """What stays frozen, (N, S, R, a + b) or None, and what is trained, (N, S, R, a + b) or (N, size)."""
    rule, rank = space.rule, config.rank_in(space)
    if config.relax == "lora":
        own = space
        if config.where == "rule":  # what has no numbers of other layers has no zeros there either
            own = rule if prediction is None else space.of(prediction)
        nobody = torch.zeros(len(own.sites), 1, own.width)  # as a file gives them back, which holds no such numbers
        frozen = _for_all(nobody, people) if prediction is None else prediction
        return own.fill(frozen), _for_all(_layout(space, config).start(config.objective.seed), people)
    if config.relax == "none":
        return None, prediction if prediction is not None else _for_all(space.start(), people)
    if not _in_blocks(space, config):
        if prediction is None:
            return None, _for_all(rule.start(1 + rank), people)
        return prediction, _for_all(rule.start(rank, first=prediction.shape[-2]), people)
    if prediction is None:
        return None, _for_all(space.start(rank), people)
    predicted = prediction.shape[-2] if prediction.shape[-3] == len(space.sites) else 0  # ranks in the blocks
    return prediction, _for_all(space.start(rank, predicted, config.places_in(space)), people)


def _in_blocks(space: LiDBSpace, config: FinetuneConfig) -> bool:
    return space.blocks > 0 and config.where in ("up", "blocks")


def _layout(space: LiDBSpace, config: FinetuneConfig) -> LoRALayout:
    """How fresh factors in full space lie in a flat tensor."""
    return LoRALayout(space.sites[config.places_in(space)], config.rank_in(space))


def _for_all(one: Tensor, people: int) -> Tensor:
    return one.expand(people, *one.shape)


def _compose(
    space: LiDBSpace, config: FinetuneConfig, frozen: Tensor | None, fresh: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What the people wear: LiDB numbers (N, S, R, a + b) and full-space factors (N, size) or None."""
    if config.relax == "lora":
        assert frozen is not None  # by _begin
        places, ranks = config.places_in(space), config.rank_in(space)
        sites = space.of(frozen).sites
        before, behind = sites[: places.start], sites[places.stop :]
        return frozen, F.pad(fresh, (LoRALayout(before, ranks).size, LoRALayout(behind, ranks).size))
    if frozen is None:
        return fresh, None
    if not _in_blocks(space, config):
        return torch.cat([frozen, _before(fresh, frozen)], dim=-2), None
    if frozen.shape[-3] == len(space.sites):
        return torch.cat([frozen, _behind(fresh, len(space.sites))], dim=-2), None
    fresh = _behind(fresh, space.blocks)
    ranks = max(frozen.shape[-2], fresh.shape[-2])
    both = [F.pad(one, (0, 0, 0, ranks - one.shape[-2])) for one in (frozen, fresh)]  # other ranks change nothing
    return torch.cat(both, dim=-3), None


def _before(fresh: Tensor, frozen: Tensor) -> Tensor:
    """Fresh ranks of the first sites as ranks of as many as the prediction has: on the others they change nothing."""
    return F.pad(fresh, (0, 0, 0, 0, 0, frozen.shape[-3] - fresh.shape[-3]))


def _behind(fresh: Tensor, sites: int) -> Tensor:
    """Fresh ranks of the last sites as ranks of so many."""
    return F.pad(fresh, (0, 0, 0, 0, sites - fresh.shape[-3], 0))
