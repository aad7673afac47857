"""The paper's tables: what is compared with what, and when a curve meets a target."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyperdreambooth.baselines.methods import METHODS, OURS, begins_bare, family_of, method_of, with_curves
from hyperdreambooth.evaluation import tables
from hyperdreambooth.evaluation.aims import aims
from hyperdreambooth.evaluation.compared import paired, where_known
from hyperdreambooth.evaluation.costs import at_equal_likeness, costs, nominal, reached
from hyperdreambooth.evaluation.curves import curves, named
from hyperdreambooth.evaluation.scores import BASE_METHOD, CELLS, ONCE, TRUE, Scores
from hyperdreambooth.evaluation.tables import PAPER


def scores(name: str, value: float, people: int = 4, seconds: float = 2.0, together: float = 1) -> Scores:
    """Everything about `value`, of people who differ a little, in two prompts that differ more."""
    values = value + torch.linspace(-0.01, 0.01, people, dtype=torch.float64)
    cells = torch.stack([values - 0.1, values + 0.1], dim=1)  # (P, Q)
    once = dict.fromkeys(ONCE, values)
    steps = float(name.partition("@")[2] or 40)
    costs = (0.9, steps, 80, seconds, together, 1000, "cpu")
    return Scores(name, torch.arange(people), dict.fromkeys(CELLS, cells), once, *costs)


def with_face(one: Scores, people: list[int], cells: Tensor) -> Scores:
    """The same, of these people, whose Face Rec. is (P, Q)."""
    return replace(one, people=torch.tensor(people), cells=one.cells | {"face": cells.double()})


def test_a_curve_meets_a_target_between_two_points() -> None:
    curve = [(1.0, 0.2), (10.0, 0.6), (1000.0, 0.5)]
    assert reached(curve, 0.4) == pytest.approx(math.sqrt(10))  # half of the way, in the logarithm
    assert reached(curve, 0.6) == pytest.approx(10.0)
    assert reached(curve, 0.1) == 1.0 and reached(curve, 0.61) is None
    assert reached([(0.0, 0.0), (8.0, 0.4)], 0.1) == pytest.approx(2.0)  # a quarter of the way, in the time


def run_of(*several: Scores) -> dict[str, Scores]:
    return {one.method: one for one in several}


def test_speed_at_equal_likeness_is_said_of_methods_with_a_curve() -> None:
    ours = scores(OURS, 0.4)
    run = run_of(
        scores(TRUE, 0.9),
        ours,
        scores("lora@10", 0.2, seconds=1),
        scores("lora@99", 0.6, seconds=100),
        scores("k-1", 0.3),
    )
    text = "\n".join(at_equal_likeness(run))
    assert "ours: 2.00 s)" in text and "| lora | 4 | 0.400 | 10.0 s | 5.0 x |" in text and "k-1" not in text
    slow = run | run_of(with_face(run["lora@99"], [0, 1, 2, 3], torch.full((4, 2), 0.3)))
    assert "| lora | 4 | 0.400 | not in 100.0 s (at best 0.300) |" in "\n".join(at_equal_likeness(slow))
    at_once = run | run_of(scores("lora@10", 0.5, seconds=1))
    assert "| lora | 4 | 0.400 | at most 1.0 s | at most 0.5 x |" in "\n".join(at_equal_likeness(at_once))
    assert list(at_equal_likeness({OURS: ours})) == []


def test_dreambooths_curve_is_of_all_its_rates_and_begins_with_the_bare_base() -> None:
    run = run_of(
        scores(BASE_METHOD, 0.1, seconds=0.01, together=20),
        scores(OURS, 0.4),
        replace(scores("only-hyper", 0.2, seconds=0.1), iterations=0.0),
        replace(scores("dreambooth", 0.5, seconds=90), iterations=1200.0),
        scores("dreambooth-agg-2", 0.3, seconds=4.2),
        scores("dreambooth@40", 0.11, seconds=4.0),
        scores("dreambooth-agg-2@160", 0.25, seconds=16),  # too fast for so long
        replace(scores("dreambooth-agg-1", 0.45, seconds=40), iterations=400.0),
    )
    found = curves(run)
    assert list(found) == [OURS, "dreambooth"]
    assert [one.method for one in found[OURS]] == ["only-hyper", OURS]
    told = [(one.method, one.seconds) for one in found["dreambooth"]]
    names = [BASE_METHOD, "dreambooth-agg-2", "dreambooth-agg-2@160", "dreambooth-agg-1", "dreambooth"]
    assert told == list(zip(names, (0.0, 4.2, 16, 40, 90), strict=True))
    # 0.4 is two thirds of the way from the best that was had at 16 s, which is 0.3 and not 0.25, to 0.45 at 40 s.
    seconds = 16 * (40 / 16) ** ((0.4 - 0.3) / (0.45 - 0.3))
    text = "\n".join(at_equal_likeness(run))
    assert f"| dreambooth | 4 | 0.400 | {seconds:,.1f} s | {seconds / 2:,.1f} x |" in text
    low = "\n".join(at_equal_likeness(run | run_of(scores(OURS, 0.2))))  # half of the way from the base to 0.3 at 4.2 s
    assert "| dreambooth | 4 | 0.200 | 2.1 s |" in low
    assert set(named(run)) == {BASE_METHOD, OURS, "only-hyper", "dreambooth", "dreambooth-agg-2", "dreambooth-agg-1"}


def test_points_of_very_few_people_do_not_decide_when_others_are_as_like() -> None:
    people = {"lora": 16, "lora@99": 16, "lora@50": 3}
    run = run_of(scores(OURS, 0.4, people=16))
    for (name, count), value, seconds in zip(people.items(), (0.5, 0.3, 0.45), (100, 10, 50), strict=True):
        run |= run_of(scores(name, value, people=count, seconds=seconds))
    steps = {"lora": 1000.0, "lora@99": 99.0, "lora@50": 500.0, OURS: 40.0}
    run = {name: replace(one, iterations=steps[name]) for name, one in run.items()}
    halfway = 10 * (100 / 10) ** 0.5
    assert f"| lora | 16 | 0.400 | {halfway:,.1f} s |" in "\n".join(at_equal_likeness(run))
    del run["lora@99"]  # two points, though of few, are more than one
    assert "| lora | 3 |" in "\n".join(at_equal_likeness(run))


def test_the_points_of_a_curve_are_methods_of_its_family() -> None:
    points = with_curves(METHODS)
    assert len(set(points)) == len(points) and points[: len(METHODS)] == tuple(METHODS)
    assert {f"{OURS}@{steps}" for steps in (5, 10, 20, 80)} <= set(with_curves([OURS]))
    for name in METHODS:
        for point in with_curves([name])[1:]:
            assert family_of(point) == name or (point == BASE_METHOD and begins_bare(name))
            assert method_of(point).iterations == int(point.partition("@")[2] or METHODS[point].iterations)
    bare = {name for name in METHODS if begins_bare(name)}
    assert {"dreambooth", "no-hyper", "lora-dreambooth", "lidb-dreambooth", "textual-inversion"} <= bare
    assert not bare & {OURS, "only-hyper", "k-1", "e4t", BASE_METHOD}


def test_the_target_is_ours_on_the_people_and_prompts_of_the_curve() -> None:
    ours = with_face(scores(OURS, 0), [0, 1, 2], torch.tensor([[0.9, 0.9], [0.3, 0.7], [0.5, 0.9]]))
    nan = float("nan")
    short = with_face(scores("lora@10", 0, seconds=1), [2, 1], torch.tensor([[0.1, 0.1], [0.1, 0.9]]))
    long = with_face(scores("lora@99", 0, seconds=100), [1, 2], torch.tensor([[0.7, nan], [0.7, 0.9]]))
    # Person 1 in the first prompt, person 2 in both: ours 0.3 and 0.7, the curve 0.1 and 0.1, then 0.7 and 0.8.
    text = "\n".join(at_equal_likeness(run_of(ours, short, long)))
    seconds = 100 ** ((0.5 - 0.1) / (0.75 - 0.1))
    assert f"| lora | 2 | 0.500 | {seconds:.1f} s | {seconds / 2:.1f} x |" in text


def test_seconds_that_were_shared_otherwise_are_not_compared() -> None:
    batch, alone = scores("k-1", 0.5, seconds=3, together=20), scores("dreambooth", 0.5, seconds=8)
    text = "\n".join(costs(run_of(scores(OURS, 0.5), batch, alone)))
    assert "| k-1 | 40 (1.0 x) | 80 (1.0 x) | 3.00, 20 at once (-) | 1,000 (1.0 x) |" in text
    assert "| dreambooth | 40 (1.0 x) | 80 (1.0 x) | 8.00 (4.0 x) |" in text
    ours = scores(OURS, 0.5, together=20)
    text = "\n".join(costs(run_of(ours, batch, alone)))
    assert "3.00, 20 at once (1.5 x)" in text and "8.00 (-)" in text
    curve = [scores("lora@10", 0.2, seconds=1), scores("lora@99", 0.8, seconds=100)]
    text = "\n".join(at_equal_likeness(run_of(ours, *curve)))
    assert "ours: 2.00 s, 20 at once" in text and "| 10.0 s | - |" in text
    mixed = [curve[0], replace(curve[1], together=2)]
    assert "not comparable" in "\n".join(at_equal_likeness(run_of(ours, *mixed)))


def test_differences_are_of_the_people_and_prompts_that_both_have() -> None:
    ours, other = scores(OURS, 0.5), scores("dreambooth", 0.5)
    few = with_face(other, [3, 1, 2], torch.tensor([[0.10, float("nan")], [0.20, 0.40], [torch.nan, torch.nan]]))
    gap = paired(ours, few, "face")
    mine = ours.cells["face"]
    expected = ((mine[3, 0] - 0.10) + ((mine[1, 0] - 0.20) + (mine[1, 1] - 0.40)) / 2) / 2
    assert gap.value == pytest.approx(float(expected))
    assert gap.unsure  # two people
    assert paired(ours, other, "face").value == 0
    nobody = with_face(other, [7], torch.ones(1, 2))
    assert math.isnan(paired(ours, nobody, "face").value)
    assert "nan" not in "\n".join(tables.differences(run_of(ours, nobody)))


def test_the_bare_base_is_no_method_to_compare_with() -> None:
    run = run_of(scores(OURS, 0.5), scores("k-1", 0.4), scores(BASE_METHOD, 0.1), scores(TRUE, 0.9))
    for table in (tables.differences, aims, costs, nominal, at_equal_likeness):
        assert BASE_METHOD not in "\n".join(table(run))
    bounds = [line for line in tables.paper_tables(run) if "bare base" in line or TRUE in line]
    assert [line[:30] for line in bounds] == ["| *nobody: the bare base* |  |", "| *true pictures* |  | 0.900<b"]
    lines = list(tables.beyond(run))
    assert any(line.startswith("| nobody worn | 4 | 0.100<br>") for line in lines) and len(lines) == 2 + 4


def test_the_tables_hold_the_papers_rows_and_whatever_else_there_is() -> None:
    names = (*PAPER, "fixed-rank", TRUE)
    text = "\n".join(tables.paper_tables({name: scores(name, 0.5) for name in names}))
    for title in (*tables.TABLES, "Ranks: relaxed and not"):
        assert f"### {title}" in text
    assert text.count("| **hyperdreambooth** |") == 4 and "What the paper has not" not in text
    for figures in PAPER.values():
        assert "| " + " | ".join(f"*{figure:.3f}*" for figure in figures) + " |" in text
    assert "fixed-rank" in text.partition("### Ranks")[2]
    assert {name for name in METHODS if name.startswith("relaxed")} <= set(tables.RANKS)
    more = "\n".join(tables.paper_tables({name: scores(name, 0.5) for name in (*names, "e4t")}))
    assert "| e4t | 40 |" in more.partition("### What the paper has not")[2]
    alone = "\n".join(tables.paper_tables({"hyperdreambooth": scores("hyperdreambooth", 0.5), TRUE: scores(TRUE, 0.9)}))
    assert alone == ""


def test_a_table_is_of_the_people_whom_all_of_its_methods_drew() -> None:
    """Ours is better over all whom it drew, and worse than DreamBooth on those whom both drew."""
    ours = with_face(scores(OURS, 0), [0, 1, 2, 3], torch.tensor([[0.9], [0.9], [0.2], [0.4]]).expand(4, 2))
    other = with_face(scores("dreambooth", 0), [3, 2], torch.tensor([[0.6], [0.5]]).expand(2, 2))
    truth = with_face(scores(TRUE, 0), [0, 1, 2, 3], torch.tensor([[0.1], [0.1], [0.9], [0.8]]).expand(4, 2))
    lines = list(tables.paper_tables(run_of(ours, other, truth)))
    assert "Of 2 whom all of these have drawn, and their common prompts." in lines
    first = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in lines if line.startswith("| ")}
    assert [first[name][:5] for name in (f"**{OURS}**", "dreambooth", f"*{TRUE}*")] == ["0.300", "0.550", "0.850"]
    strangers = with_face(other, [7, 8], torch.ones(2, 2))
    assert "There is nobody whom all of these have drawn." in list(tables.paper_tables(run_of(ours, strangers)))


def test_of_prompts_without_true_pictures_a_table_has_no_ceiling_and_another_leaves_them_out() -> None:
    """In the second prompt nobody knows how people look, and ours is better there alone."""
    nan = torch.full((4, 1), torch.nan, dtype=torch.float64)
    truth, other = scores(TRUE, 0.9), scores("dreambooth", 0.5)
    truth = replace(truth, cells={name: torch.cat([one[:, :1], nan], dim=1) for name, one in truth.cells.items()})
    ours = with_face(scores(OURS, 0), [0, 1, 2, 3], torch.tensor([0.3, 0.9]).expand(4, 2))
    run = run_of(ours, other, truth)
    assert not any(TRUE in line for line in tables.paper_tables(run))
    lines = list(tables.all_together(run))
    assert lines[0] == "### All methods, in 1 of 2 prompts: it is known how people truly look there"
    first = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in lines if line.startswith("| ")}
    assert [first[name][:5] for name in (f"**{OURS}**", f"*{TRUE}*")] == ["0.300", "0.800"]
    (gap,) = (line for line in lines if line.startswith("| dreambooth | 4 |"))
    assert "-0.100" in gap  # of 0.4 there; over both prompts it is +0.100
    assert paired(*(where_known(run)[name] for name in (OURS, "dreambooth")), "face").value == pytest.approx(-0.1)
    whole = run_of(ours, other, scores(TRUE, 0.9))
    title, _, _, _, *table = tables.all_together(whole)
    assert title == "### All methods" and [row.split("|")[3][:6] for row in table[2:-1]] == [
        " 0.600",
        " 0.500",
        " 0.900",
    ]
    assert not where_known(run_of(ours))[OURS].cells["face"].isnan().any()


def test_a_method_with_very_few_people_does_not_decide_on_whom_all_are_compared() -> None:
    ours, other = scores(OURS, 0.5, people=12), scores("dreambooth", 0.4, people=4)
    few = with_face(scores("textual-inversion", 0), [1, 3, 5], torch.tensor([[0.1], [0.2], [0.3]]).expand(3, 2))
    lines = list(tables.paper_tables(run_of(ours, other, few)))
    assert "Of 4 whom all of these have drawn, and their common prompts." in lines
    (row,) = (line for line in lines if line.startswith("| textual-inversion"))
    assert row.startswith("| textual-inversion (of 3 of them) | 40 | 0.200<br>")


def test_a_hundred_people_are_compared_with_sixteen_on_these() -> None:
    ours, cheap = scores(OURS, 0.5, people=100), scores("textual-inversion", 0.4, people=100)
    lines = list(tables.paper_tables(run_of(ours, cheap, scores("dreambooth", 0.4, people=16))))
    assert "Of 16 whom all of these have drawn, and their common prompts." in lines
    assert not any("of them)" in line for line in lines)
    lines = list(tables.paper_tables(run_of(ours, cheap, scores("dreambooth", 0.4, people=9))))
    assert "Of 100 whom all of these have drawn, and their common prompts." in lines
    assert any(line.startswith("| dreambooth (of 9 of them) |") for line in lines)


def test_nominal_seconds_are_of_one_noise_a_step() -> None:
    run = run_of(scores(OURS, 0.5), scores("one-noise", 0.5, seconds=1), scores("dreambooth", 0.5, seconds=30))
    text = "\n".join(nominal(run))
    assert "| dreambooth | 40 | 30.00 | 30.0 x | 25 x |" in text and f"| {OURS} |" not in text
    assert list(nominal(run_of(scores(OURS, 0.5)))) == []


def test_seconds_of_another_machine_are_not_compared() -> None:
    elsewhere = replace(scores("dreambooth", 0.5, seconds=8), machine="NVIDIA H100 bf16")
    assert "8.00 (-)" in "\n".join(costs(run_of(scores(OURS, 0.5), elsewhere)))
