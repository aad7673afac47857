"""Fast fine-tuning: the prediction stays what it was, fresh factors lower the loss, people stay strangers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperdreambooth.fitting.finetune import (
    PRESETS,
    FinetuneConfig,
    Finetuning,
    Relax,
    Where,
    finetune,
    relaxation_in,
)
from hyperdreambooth.fitting.fit import Objective
from hyperdreambooth.fitting.steps import FitConfig, StepReport
from hyperdreambooth.lidb import LiDBSpace, LoRALayout, Site
from tests.fitting.conftest import World, assert_same_fit

RELAXATIONS: list[Relax] = ["lidb", "lora", "none"]


def config(relax: Relax, steps: int = 3, lr: float = 1e-2) -> FinetuneConfig:
    return FinetuneConfig(
        relax=relax, rank=2, fit=FitConfig(steps=steps, lr=lr), lr_alone=None, objective=Objective(noises=2)
    )


def tuned(
    world: World, people: slice, settings: FinetuneConfig, prediction: torch.Tensor | None
) -> tuple[Finetuning, list[StepReport]]:
    pictures = world.pictures(3, masks=True)
    assert pictures.masks is not None
    tuning = finetune(
        world.base, world.adapters, pictures.latents[people, 0], prediction, settings, masks=pictures.masks[people, 0]
    )
    return tuning, list(tuning)


def trained(tuning: Finetuning) -> torch.Tensor:
    return tuning.weights if tuning.lora is None else tuning.lora


@pytest.mark.parametrize("relax", RELAXATIONS)
@pytest.mark.parametrize("predicted", ["nobody", "in all sites", "in those of the rule"])
def test_many_people_at_once_equal_one_by_one(world: World, relax: Relax, predicted: str) -> None:
    sites = {"in all sites": len(world.space.sites), "in those of the rule": len(world.space.rule.sites)}.get(predicted)
    prediction = None if sites is None else world.people(3)[:, :sites]
    before, _ = tuned(world, slice(None), config(relax, steps=1, lr=0.0), prediction)
    together, reports = tuned(world, slice(None), config(relax), prediction)
    for n in range(3):
        mine = None if prediction is None else prediction[n : n + 1]
        alone, _ = tuned(world, slice(n, n + 1), config(relax), mine)
        assert_same_fit(trained(together)[n], trained(alone)[0], trained(before)[n])
    assert reports[-1].samples == 3 * 3 * 2


@pytest.mark.parametrize("relax", RELAXATIONS)
def test_the_first_step_meets_exactly_the_prediction(world: World, relax: Relax) -> None:
    prediction = world.people(3)
    _, (fixed, *_) = tuned(world, slice(None), config("none"), prediction)
    _, (report, *_) = tuned(world, slice(None), config(relax), prediction)
    _, (nobody, *_) = tuned(world, slice(None), config(relax), None)
    assert report.loss == pytest.approx(fixed.loss, rel=1e-5)
    assert abs(nobody.loss - fixed.loss) > 1e-3 * fixed.loss


def test_lidb_keeps_the_prediction_and_adds_fresh_ranks(world: World) -> None:
    prediction = world.people(3)
    tuning, _ = tuned(world, slice(None), config("lidb"), prediction)
    start, before = world.space.start(2, first=1), len(world.space.sites) - world.space.way_up
    assert tuning.weights.shape == (3, len(world.space.sites), 1 + 2, world.space.width)
    assert torch.equal(tuning.weights[:, :, :1], prediction)
    fresh = tuning.weights[:, :, 1:]  # in the residual blocks of the way up
    assert 1e-3 < (fresh[:, before:] - start[before:]).abs().max() < 0.1 and not fresh[:, :before].any()
    assert tuning.lora is None


def test_lora_keeps_the_prediction_and_adds_full_space_factors(world: World) -> None:
    prediction = world.people(3)
    tuning, _ = tuned(world, slice(None), config("lora"), prediction)
    assert torch.equal(tuning.weights, prediction)
    assert tuning.lora is not None and tuning.lora.shape == (3, LoRALayout(world.space.sites, 2).size)


@pytest.mark.parametrize("where", ["up", "blocks", "rule", "all"])
def test_full_space_factors_are_where_they_are_asked_for(world: World, where: Where) -> None:
    """Elsewhere dW is zero; one person, whose prediction is in the weights meanwhile, comes out as among others."""
    settings, rule = replace(config("lora"), where=where), len(world.space.rule.sites)
    tuning, _ = tuned(world, slice(None), settings, world.people(3))
    assert tuning.lora is not None and torch.equal(
        tuning.weights, world.people(3)
    )  # what was predicted stays, all of it
    flat = world.space.of(tuning.weights).fill_lora(tuning.lora, world.space)  # those of the rule alone may be shorter
    changed = [bool((up @ down).any()) for down, up in LoRALayout(world.space.sites, 2).split(flat)]
    expected = {"blocks": (False, True), "rule": (True, False), "all": (True, True)}.get(where)
    if expected is None:
        assert changed == [
            number >= rule and ".up_blocks." in site.name for number, site in enumerate(world.space.sites)
        ]
        assert True in changed and not all(changed[rule:])
    else:
        assert changed[:rule] == [expected[0]] * rule and changed[rule:] == [expected[1]] * world.space.blocks
    before, _ = tuned(world, slice(None), replace(settings, fit=FitConfig(steps=1, lr=0.0)), world.people(3))
    alone, _ = tuned(world, slice(1, 2), settings, world.people(3)[1:2])
    assert_same_fit(tuning.lora[1], trained(alone)[0], trained(before)[1])


def test_fresh_ranks_in_the_bases_are_not_everywhere() -> None:
    with pytest.raises(ValueError, match='expected "up", "blocks" or "rule"'):
        FinetuneConfig(relax="lidb", where="all")


def test_none_trains_the_prediction_and_leaves_the_callers_alone(world: World) -> None:
    prediction = world.people(3)
    before = prediction.clone()
    tuning, _ = tuned(world, slice(None), config("none"), prediction)
    assert tuning.weights.shape == prediction.shape and not torch.equal(tuning.weights, prediction)
    assert torch.equal(prediction, before)


def test_without_a_prediction_the_result_has_the_same_size(world: World) -> None:
    prediction = world.people(1)
    rule = prediction[:, : len(world.space.rule.sites)]
    for settings, some in (
        (config("lora", steps=1), prediction),
        (config("none", steps=1), prediction),
        (replace(config("lidb", steps=1), where="rule"), rule),
    ):
        with_one, _ = tuned(world, slice(0, 1), settings, some)
        without, _ = tuned(world, slice(0, 1), settings, None)
        assert with_one.weights.shape == without.weights.shape


@pytest.mark.parametrize("relax", RELAXATIONS)
def test_the_result_worn_draws_what_was_trained(world: World, relax: Relax) -> None:
    """The loss of one more step, taken from what `weights` and `lora` say, goes on from where the run ended."""
    settings = config(relax, steps=16, lr=3e-2)
    tuning, reports = tuned(world, slice(None), settings, world.people(3))
    pictures = world.pictures(3)

    def output(weights: torch.Tensor, lora: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad(), world.adapters.use(weights, lora):
            states = world.base.encode_prompts(["a [V] face"] * 3)
            return world.base.predict(pictures.latents[:, 0], torch.full((3,), 500), states)

    assert sum(r.loss for r in reports[-5:]) < sum(r.loss for r in reports[:5])
    assert (output(tuning.weights, tuning.lora) - output(world.people(3), None)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("rule", "blocks", "up", "a", "b", "ranks", "in_all_blocks"),
    [
        (192, 80, 48, 100, 50, 10, 6),  # Stable Diffusion 1.5: 112,800 numbers, of 115,200, either way
        (71, 40, 24, 64, 32, 12, 12),  # the embedded base has room for more
        (806, 100, 60, 100, 50, 6, 6),  # no room at all
        (192, 0, 0, 100, 50, 6, 6),
        (8, 10, 0, 100, 50, 12, 12),
        (141, 61, 61, 100, 50, 9, 9),  # 30,300 numbers and 84,900 more, of 9,150 a rank
    ],
)
def test_a_person_has_as_many_ranks_as_there_is_room_for(
    rule: int, blocks: int, up: int, a: int, b: int, ranks: int, in_all_blocks: int
) -> None:
    paths = [f"down_blocks.{number}" for number in range(rule + blocks - up)] + [f"up_blocks.{n}" for n in range(up)]
    sites = tuple(Site(f"unet.{path}", "unet", path, 1000, 1000) for path in paths)
    space = LiDBSpace(sites, a=a, b=b, rule_sites=rule)
    assert space.way_up == up
    assert PRESETS["lidb"].config.rank_in(space) == ranks
    assert replace(PRESETS["lidb"].config, where="blocks").rank_in(space) == in_all_blocks
    assert FinetuneConfig(rank=3).rank_in(space) == 3 and PRESETS["lora"].config.rank_in(space) == 4


@pytest.mark.parametrize(
    ("blocks", "width", "relax"),
    [(80, 7156, "lidb"), (40, 964, "lora"), (40, 1183, "lora"), (40, 1184, "lidb"), (0, 964, "lidb")],
)
def test_full_space_is_for_small_bases(blocks: int, width: int, relax: Relax) -> None:
    """Stable Diffusion 1.5 with 572,480 numbers a rank; the embedded base, 38,560; on the brink of 200,000 in all."""
    sites = [Site(f"unet.{number}", "unet", str(number), 101, width - 101) for number in range(71 + blocks)]
    assert relaxation_in(LiDBSpace(tuple(sites), a=64, b=32, rule_sites=71)) == relax


@pytest.mark.parametrize(
    ("relax", "predicted", "times"),
    [("lidb", True, 1), ("lora", True, 1), ("lora", False, 1), ("lidb", False, 3), ("none", True, 3)],
)
def test_the_prompt_is_read_once_where_nothing_changes_it(
    world: World, relax: Relax, predicted: bool, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh factors in the residual blocks leave the text encoder alone; the result is that of reading every time."""
    read, prediction = list[int](), world.people(3) if predicted else None
    encode = world.base.encode_prompts
    monkeypatch.setattr(world.base, "encode_prompts", lambda prompts: (read.append(len(prompts)), encode(prompts))[1])
    tuning, reports = tuned(world, slice(None), config(relax), prediction)
    assert read == [3] * times
    monkeypatch.setattr("hyperdreambooth.fitting.finetune._states", lambda *_: None)
    expected, each = tuned(world, slice(None), config(relax), prediction)
    assert [one.loss for one in reports] == pytest.approx([one.loss for one in each], rel=1e-6)
    start, _ = tuned(world, slice(None), config(relax, steps=1, lr=0.0), prediction)
    assert_same_fit(trained(tuning), trained(expected), trained(start))


def test_weights_can_be_read_on_the_way(world: World) -> None:
    pictures = world.pictures(1)
    settings = config("lidb", steps=3)
    tuning = finetune(world.base, world.adapters, pictures.latents[:, 0], world.people(1), settings)
    seen = [tuning.weights for _ in tuning]
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1]) and torch.equal(seen[2], tuning.weights)


def test_presets_run(world: World) -> None:
    for preset in PRESETS.values():
        short = replace(preset.config, fit=replace(preset.config.fit, steps=1))
        finetuning, reports = tuned(world, slice(0, 1), short, world.people(1))
        assert len(reports) == 1 and torch.isfinite(finetuning.weights).all()


def test_a_prediction_of_other_people_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="for 3 photographs"):
        tuned(world, slice(None), config("lidb"), world.people(2))
    with pytest.raises(ValueError, match="for 3 photographs"):
        tuned(world, slice(None), config("lidb"), world.people(1)[0])


def test_people_whom_nobody_predicted_go_faster_where_asked(world: World) -> None:
    settings = replace(config("lidb", steps=1), lr_alone=3e-2)
    for prediction, expected in ((world.people(3), 1e-2), (None, 3e-2)):
        _, reports = tuned(world, slice(None), settings, prediction)
        assert reports[0].lr == expected
    _, reports = tuned(world, slice(None), replace(settings, lr_alone=None), None)
    assert reports[0].lr == 1e-2
