"""Phases at full size, run on a narrow model; seconds are not looked at."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import sd15
from benchmarks.counts import Operations
from benchmarks.memory import random_base
from benchmarks.plain_lora import PlainLora
from benchmarks.rows import OURS, SET_UP, Row, ratios, totals
from benchmarks.sd15 import Bench
from hyperdreambooth.base.compiled import compile_unet
from hyperdreambooth.base.model import Base
from hyperdreambooth.hypernetwork.cost import count_flops, training_cost
from hyperdreambooth.hypernetwork.model import PRESETS, random_hypernetwork
from hyperdreambooth.hypernetwork.training import TrainConfig
from hyperdreambooth.pipeline import HyperDreamBooth
from tests.base.checkpoints import SIZE, write_layout
from tests.conftest import left_as_it_was


def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: object) -> Any:
    """What the benchmark writes of a narrow model."""
    layout, output = write_layout("sd1", tmp_path / "layout"), tmp_path / "sd15.json"
    command = ["sd15", "--layout", layout, "--size", SIZE, "--a", 10, "--b", 6, "--preset", "tiny", "-o", output, *more]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    sd15.main()
    return json.loads(output.read_text())


def test_every_phase_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--device", "cpu", "--steps", 1, "--noises", 1, 2, "--people", 1, 2, "--tuned", 3)
    monkeypatch.setattr(sd15, "REDUCED", replace(sd15.REDUCED, matmul=64, rows=(1, 2)))
    result = narrow(tmp_path, monkeypatch, *options)
    assert result["reduced"] and result["picture"] == SIZE and result["peak"] > 0
    rows = {row["phase"]: row for row in result["rows"]}
    assert len(rows) == 2 + 2 + 1 + 3 + 2 + 2 * 2 + 2 * 3 + 5
    assert set(result["mixed over one"]) == {"U-Net, batch of 1", "U-Net, batch of 2"}
    assert set(result["totals"]) == {
        "personalise (s)",
        "face to first picture (s)",
        "best batch of pre-optimisation, 1 noise (people)",
        "15,000 people, 100 steps of 1 noise (hours)",
        "best batch of pre-optimisation, 4 noises (people)",
        "15,000 people, 100 steps of 4 noises (hours)",
    }
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 1e8 for row in rows.values())
    assert all(row["flops"] > 0 for name, row in rows.items() if name != SET_UP)
    alone, pair = (rows[f"pre-optimise, batch of {people} x 4 noises"]["flops"] for people in (1, 2))
    assert pair == 2 * alone
    once, every_step = rows["plain loop, rank 4"], rows["plain loop, rank 4, encodes"]
    assert every_step["flops"] > once["flops"] > rows["plain loop, rank 1"]["flops"]
    assert rows["plain loop, rank 4, 2 noises"]["flops"] == 2 * once["flops"]
    three, one = rows["fine-tune, 3 people x 1 noise"], rows["fine-tune, 1 noise"]
    assert 3 * one["flops"] <= three["flops"] < 4 * one["flops"]
    assert three["facts"]["40 steps, a person (s)"] == pytest.approx(40 * three["seconds"] / 3)
    assert rows["picture with likeness, 1 step"]["flops"] > rows["guided picture, 1 step"]["flops"]
    assert set(result["plain over ours"]) == {phase for phase in rows if phase.startswith("plain")}
    assert "No CUDA: cut to" in capsys.readouterr().out


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The quantities of the narrow model, by name."""
    with pytest.MonkeyPatch.context() as patch:
        return {one["name"]: one["value"] for one in narrow(tmp_path_factory.mktemp("counts"), patch, "--counts")}


def test_counts_agree_with_what_runs(
    counted: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--device", "cpu", "--phases", "encode", "mixed", "preoptimise", "--people", 1)
    monkeypatch.setattr(sd15, "REDUCED", replace(sd15.REDUCED, matmul=64, rows=(1, 2)))
    rows = {row["phase"]: row["flops"] for row in narrow(tmp_path, monkeypatch, *options)["rows"]}
    assert rows["VAE encode"] == counted["VAE, encode (GFLOP)"] * 1e9
    assert rows["U-Net, batch of 1, nobody"] == counted["U-Net, forward (GFLOP)"] * 1e9
    assert rows["U-Net, batch of 2, nobody"] == counted["guided step (GFLOP)"] * 1e9
    assert rows["pre-optimise, batch of 1 x 4 noises"] == counted["a person's step of 4 noises (GFLOP)"] * 1e9


def test_sizes_are_those_of_people_who_are_made(counted: dict[str, float], tmp_path: Path) -> None:
    booth = HyperDreamBooth(random_base(write_layout("sd1", tmp_path / "layout"), SIZE, 10, 6))
    booth.hypernetwork = random_hypernetwork(replace(PRESETS["tiny"], blocks=False), booth.space, booth.fingerprint)
    picture = torch.rand(3, 64, 64)
    alone = booth.personalize(picture, steps=0).numbers
    lora = sum(site.n_in + site.n_out for site in booth.space.rule.sites)
    assert counted["a person, LiDB of one rank (numbers)"] == alone
    assert counted["the one of the other (%)"] == pytest.approx(100 * alone / lora)
    for relax, where in (("lidb", "in the bases"), ("lora", "in full space")):
        person = booth.personalize(picture, steps=1, noises=1, relax=relax)
        assert counted[f"a person, relaxed {where} (numbers)"] == person.numbers


def test_a_training_is_counted_on_shapes_as_on_numbers(counted: dict[str, float], tmp_path: Path) -> None:
    booth = HyperDreamBooth(random_base(write_layout("sd1", tmp_path / "layout"), SIZE, 10, 6))
    cost = training_cost(PRESETS["tiny"], booth.base, booth.adapters, TrainConfig())
    for name, phase in cost.phases.items():
        told = [f"training on {name}, a step (GFLOP)", f"training on {name}, kept in float32 (bytes)"]
        assert [counted[one] for one in told] == [phase.flops_per_step / 1e9, phase.kept_bytes]
    assert counted["hypernetwork in float32 (bytes)"] == cost.network_bytes > 4 * cost.parameters
    assert counted["gradient, moments and average of these (bytes)"] == 4 * 4 * cost.parameters_trained


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch says both while it compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_every_row_is_but_the_plain_loop(fresh_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a backend that counts its passes; a second kind of shapes in a row would be an error."""
    passes = list[None]()

    def counting(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Any:
        return lambda *given: passes.append(None) or graph(*given)

    monkeypatch.setattr(sd15, "compile_unet", partial(compile_unet, backend=counting))
    seen = {}
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        bench = Bench(fresh_base, "tiny", replace(sd15.REDUCED, steps=1, noises=(1, 2), tuned=()), compiled=True)
        for row in bench.rows(["finetune", "plain"]):
            seen[row.phase] = len(passes)
            passes.clear()
        torch.compiler.reset()
    assert seen.pop(SET_UP) == 0
    assert [count for name, count in seen.items() if name.startswith("fine-tune")] == [2, 2]  # the first is counted
    assert [count for name, count in seen.items() if name.startswith("plain")] == [0] * 5


def test_flops_of_a_linear_layer_by_hand() -> None:
    layer, x = nn.Linear(7, 5), torch.ones(3, 7)
    assert count_flops(lambda: layer(x)) == 2 * 3 * 7 * 5
    assert count_flops(lambda: layer(x.requires_grad_()).sum().backward()) == 3 * 2 * 3 * 7 * 5


def test_the_plain_loop_learns_and_leaves_nothing(fresh_base: Base, generator: torch.Generator) -> None:
    keys = set(fresh_base.unet.state_dict())
    with left_as_it_was(fresh_base):
        losses = PlainLora(2).losses(fresh_base, torch.rand(1, 3, 16, 16, generator=generator), generator)
        assert next(losses) != next(losses)
        factors = [p for p in fresh_base.unet.parameters() if p.requires_grad]
        assert factors and all(2 in p.shape and p.any() for p in factors)  # B starts at zero
        losses.close()
    assert set(fresh_base.unet.state_dict()) == keys


def test_plain_work_is_set_against_ours_of_the_same_kind() -> None:
    rows = [
        Row(OURS, "step", 2.0, 1, 1),
        Row("fine-tune, 4 noises", "step", 7.0, 1, 1),
        Row("fine-tune, 4 people x 1 noise", "step of all", 6.0, 1, 1),
        Row("guided picture, 50 steps", "picture", 5.0, 1, 1),
        Row("picture with likeness, 50 steps", "picture", 8.0, 1, 1),
        Row("plain loop, rank 4, encodes", "step", 3.0, 1, 1),
        Row("plain loop, rank 4, 4 noises", "step", 10.5, 1, 1),
        Row("plain picture", "picture", 6.0, 1, 1),
    ]
    over = {"plain loop, rank 4, encodes": 1.5, "plain loop, rank 4, 4 noises": 1.5, "plain picture": 1.2}
    assert ratios(rows)["plain over ours"] == over
    assert ratios(rows[4:])["plain over ours"] == {}


def test_ratios_and_totals_by_hand() -> None:
    rows = [
        Row("encoder of tiny", "picture", 9.0, 1, 1),
        Row("hypernetwork, 3 rounds", "picture", 0.5, 1, 1),
        Row("VAE encode", "picture", 0.25, 1, 1),
        Row(OURS, "step", 2.0, 1, 1),
        Row("fine-tune, 4 noises", "step", 7.0, 1, 1),
        Row("plain loop, rank 1", "step", 3.0, 1, 1),
        Row("U-Net, batch of 4, one person", "pass", 4.0, 1, 1),
        Row("U-Net, batch of 4, a person each", "pass", 5.0, 1, 1),
    ]
    assert ratios(rows) == {
        "plain over ours": {"plain loop, rank 1": 1.5},
        "mixed over one": {"U-Net, batch of 4": 1.25},
    }
    assert totals(rows) == {"personalise (s)": 0.5 + 0.25 + 40 * 2.0}
    drawn = [*rows, Row("guided picture, 50 steps", "picture", 10.0, 1, 1)]
    assert totals(drawn)["face to first picture (s)"] == 0.5 + 0.25 + 80.0 + 10.0
    assert totals(rows[:3]) == {}
    rates = {(1, "1 noise"): 1500.0, (8, "1 noise"): 6000.0, (16, "1 noise"): 5000.0, (4, "4 noises"): 750.0}
    many = [
        Row(f"pre-optimise, batch of {people} x {noises}", "step", 1.0, 1, 1, {"people an hour, 100 steps": rate})
        for (people, noises), rate in rates.items()
    ]
    assert totals(many) == {
        "best batch of pre-optimisation, 1 noise (people)": 8,
        "15,000 people, 100 steps of 1 noise (hours)": 2.5,
        "best batch of pre-optimisation, 4 noises (people)": 4,
        "15,000 people, 100 steps of 4 noises (hours)": 20.0,
    }
    assert totals([*many, *drawn]).keys() == totals(many).keys() | totals(drawn).keys()


def test_operations_are_those_that_give_new_numbers() -> None:
    x = torch.ones(3, 3)
    with Operations() as operations:
        (x @ x.T + 1).view(9).detach()
    assert operations.count == 2
    with Operations() as operations:
        x.T.unsqueeze(0)
    assert operations.count == 0
