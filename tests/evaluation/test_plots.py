"""What a plot joins, as matplotlib was told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from hyperdreambooth.baselines.methods import METHODS, OURS
from hyperdreambooth.evaluation import plots
from hyperdreambooth.evaluation.curves import curves
from hyperdreambooth.evaluation.scores import BASE_METHOD, TRUE
from tests.evaluation.test_tables import run_of, scores


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are made."""
    made: list[Any] = []

    def figure(**settings: Any) -> Figure:
        made.append(Figure(**settings))
        return made[-1]

    monkeypatch.setattr(plots, "_figure", lambda: figure)
    return made


def test_a_curve_begins_at_no_seconds_and_nothing_else_lies_left_of_it(tmp_path: Path, drawn: list[Any]) -> None:
    run = run_of(
        *(scores(BASE_METHOD, 0.1), scores(OURS, 0.6), scores(TRUE, 0.9)),
        *(scores("no-hyper@10", 0.2, seconds=3), scores("no-hyper@80", 0.5, seconds=20, together=4)),
    )
    lines, label = curves(run), "seconds per person"
    looks = plots.looks_of(lines)
    assert len(lines) == 2
    written = plots.plot_costs(tmp_path / "time.png", lines, run[TRUE], "seconds", label, looks)
    assert written == (tmp_path / "time.png").stat().st_size
    (shown,) = drawn
    for axes in shown.axes:
        ours, others, truth = (line for line in axes.get_lines() if not line.get_label().startswith("_"))
        assert truth.get_label() == "true pictures" and others.get_fillstyle() == "none"  # shared otherwise than ours
        assert list(ours.get_xdata()) == [2.0] and list(truth.get_ydata()) == pytest.approx([0.9, 0.9])
        assert list(others.get_xdata()) == [0.0, 3.0, 20.0] and list(others.get_ydata()) == pytest.approx(
            [0.1, 0.2, 0.5]
        )
        assert others.get_label() == "no-hyper (1, 4 at once)"
        left, right = axes.get_xlim()
        assert -1 < left < 0 and right > 20 and min(axes.get_xticks()) == 0
    plots.plot_costs(tmp_path / "bytes.png", {OURS: [run[OURS]]}, None, "bytes", "bytes", looks)
    assert {axes.get_xscale() for axes in drawn[1].axes} == {"log"}


def test_all_methods_look_differently(tmp_path: Path, drawn: list[Any]) -> None:
    names = list(METHODS)
    looks = plots.looks_of(names)
    assert list(looks) != [] and set(looks) == set(names) and len(set(looks.values())) == len(names) > 15
    assert plots.looks_of(names[:3])[names[2]] == looks[names[2]]
    some = {name: [scores(name, 0.5)] for name in names}
    plots.plot_costs(tmp_path / "bytes.png", some, None, "bytes", "bytes", looks)
    lines = [line for line in drawn[0].axes[0].get_lines() if not line.get_label().startswith("_")]
    assert [(line.get_color(), line.get_marker()) for line in lines] == [looks[name] for name in names]
