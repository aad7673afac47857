"""Likeness against what it costs: a point per method, or a line where it was run with several numbers of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from hyperdreambooth.baselines.methods import OURS
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.scores import MEASURES, Scores
from hyperdreambooth.files import write_bytes

SHOWN = ("identified", "clip_t")
_OURS = {"color": "#c2410c", "zorder": 2.5, "markersize": 8, "fillstyle": "none", "markeredgewidth": 2}  # a ring on top
_OTHERS = (
    "#334155",
    "#0f766e",
    "#7c3aed",
    "#a16207",
    "#be185d",
    "#2563eb",
    "#94a3b8",
    "#65a30d",
    "#06b6d4",
    "#f472b6",
    "#1e1b4b",
)
_PAPER, _INK = "#faf9f6", "#26262a"


def plot_costs(path: Path, lines: Mapping[str, Sequence[Scores]], truth: Scores | None, cost: str, label: str) -> int:
    """Write a PNG of the measures in `SHOWN` against a cost (an attribute of `Scores`); returns its bytes.

    Seconds that several people shared are marked in the legend.

    Args:
        path: of the file.
        lines: by name, the points to join, such as a method's curve; those whose cost nobody knows are left out.
        truth: true pictures, a dotted line across, if they are there.
        cost, label: what is to the right, and what stands under it.

    Raises:
        UserError: matplotlib, an extra, is not installed.
    """
    figure = _figure()(figsize=(11, 4.4), dpi=110, facecolor=_PAPER, layout="constrained")
    known = {name: [one for one in several if getattr(one, cost) is not None] for name, several in lines.items()}
    costs = [getattr(one, cost) for several in known.values() for one in several]
    for axes, measure in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        for number, (name, several) in enumerate(known.items()):
            points = [(getattr(one, cost), float(one.measures[measure].nanmean())) for one in several]
            look = _OURS if name == OURS else {"color": _OTHERS[number % len(_OTHERS)], "markersize": 6}
            said = name + (_shared(several) if cost == "seconds" else "")
            if points:
                axes.plot(*zip(*points, strict=True), label=said, marker="o", linewidth=1.2, **look)
        if truth is not None:
            axes.axhline(float(truth.measures[measure].nanmean()), color=_INK, linestyle=":", linewidth=1)
        _set_axis(axes, costs)
        axes.set(xlabel=label, ylabel=MEASURES[measure], facecolor=_PAPER)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    data = BytesIO()
    figure.savefig(data, format="png")
    return write_bytes(path, data.getvalue())


def _set_axis(axes: Any, costs: Sequence[float]) -> None:
    """A logarithmic axis; where something costs 0, half a decade to the left of the least of the others."""
    above = [value for value in costs if value > 0]
    if len(above) == len(costs) or not above:
        axes.set_xscale("log")
        return
    axes.set_xscale("symlog", linthresh=min(above), linscale=0.5)
    axes.set_xlim(-0.2 * min(above), 1.3 * max(above))
    decades = range(math.ceil(math.log10(min(above))), math.floor(math.log10(max(above))) + 1)
    axes.set_xticks([0, *(10.0**decade for decade in decades)])


def _shared(several: Sequence[Scores]) -> str:
    """How many people shared the seconds, where any did."""
    numbers = sorted({one.together for one in several if one.together is not None})
    return "" if numbers in ([], [1]) else f" ({', '.join(f'{number:.3g}' for number in numbers)} at once)"


def _figure() -> Any:
    """matplotlib's Figure, slow to import."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib, which is not there: pip install 'hyperdreambooth[report]'") from error
    return Figure
