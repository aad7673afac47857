"""Likeness against what it costs: a point per method, or a line where it was run with several numbers of steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from hyperdreambooth.baselines.methods import OURS
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.compared import common_people, enough, of_people, on_common
from hyperdreambooth.evaluation.costs import comparable
from hyperdreambooth.evaluation.metrics import bootstrap
from hyperdreambooth.evaluation.scores import MEASURES, Scores
from hyperdreambooth.files import write_bytes

SHOWN = ("identified", "clip_t")
_OUR_COLOUR = "#c2410c"
_OURS = {"zorder": 2.5, "markersize": 9, "markeredgewidth": 2}  # a ring on top
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
_MARKERS = "os^Dv"
_PAPER, _INK = "#faf9f6", "#26262a"


class Look(NamedTuple):
    """How a method is drawn, wherever it is."""

    colour: str
    marker: str  # in matplotlib's letters


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """A look for each method, the same in every figure of a report: no two alike but where there are dozens."""
    others = [name for name in names if name != OURS]
    every = [Look(colour, marker) for marker in _MARKERS for colour in _OTHERS]
    return dict(zip(others, cycle(every), strict=False)) | {OURS: Look(_OUR_COLOUR, _MARKERS[0])}


def plot_costs(
    path: Path,
    lines: Mapping[str, Sequence[Scores]],
    truth: Scores | None,
    cost: str,
    label: str,
    looks: Mapping[str, Look],
    heads: Mapping[str, str] = MEASURES,
) -> int:
    """Write a PNG of the measures in `SHOWN` against a cost (an attribute of `Scores`); returns its bytes.

    All points are of the people whom all of them have drawn, with 95 % intervals over these; a line of which a point
    has very few is of its own, and marked. Seconds that other numbers of people shared than ours, or were taken
    elsewhere, are hollow, and marked in the legend.

    Args:
        path: of the file.
        lines: by name, the points to join, such as a method's curve; those whose cost nobody knows are left out.
        truth: true pictures, a dotted line across, if they are there.
        cost, label: what is to the right, and what stands under it.
        looks: of the lines, by name.
        heads: how the measures are called.

    Raises:
        UserError: matplotlib, an extra, is not installed.
    """
    figure = _figure()(figsize=(11, 4.4), dpi=110, facecolor=_PAPER, layout="constrained")
    known = {name: [one for one in several if getattr(one, cost) is not None] for name, several in lines.items()}
    known = {name: several for name, several in known.items() if several}
    costs = [getattr(one, cost) for several in known.values() for one in several]
    drawn = {name: len(common_people(several)) for name, several in known.items()}
    many = dict(zip(drawn, enough(list(drawn.values())), strict=True))
    everything = [one for name, several in known.items() if many[name] for one in several]
    people = common_people(everything) if everything else []
    ours = known[OURS][-1] if OURS in known else None
    for axes, measure in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        means = dict(zip(map(id, everything), on_common(everything, measure) if people else (), strict=False))
        for name, several in known.items():
            if not many[name] and drawn[name]:
                means |= zip(map(id, several), on_common(several, measure), strict=True)
            points = [(getattr(one, cost), bootstrap(means[id(one)])) for one in several if id(one) in means]
            if not points:
                continue
            alike = ours is None or all(comparable(one, ours) for one in _fitted(several))
            colour, marker = looks[name]
            look: dict[str, Any] = {"markersize": 6, **(_OURS if name == OURS else {}), "color": colour}
            said = name + (_shared(several) if cost == "seconds" else "")
            said += "" if many[name] else f" (of {drawn[name]})"
            where, middle = [x for x, _ in points], [mean.value for _, mean in points]
            reach = [[mean.value - mean.low for _, mean in points], [mean.high - mean.value for _, mean in points]]
            axes.errorbar(where, middle, reach, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.35)
            style = "none" if name == OURS or (cost == "seconds" and not alike) else "full"
            axes.plot(where, middle, label=said, marker=marker, linewidth=1.2, fillstyle=style, **look)
        if truth is not None and people:
            height = bootstrap(of_people(truth, people, measure)).value
            axes.axhline(height, color=_INK, linestyle=":", linewidth=1, label="true pictures")
        _set_axis(axes, costs)
        axes.set(xlabel=label, ylabel=heads[measure], facecolor=_PAPER)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(f"of {len(people)} whom all have drawn", x=0.01, ha="left", fontsize=9, color=_INK)
    data = BytesIO()
    figure.savefig(data, format="png")
    return write_bytes(path, data.getvalue())


def _fitted(several: Sequence[Scores]) -> list[Scores]:
    """Those whose seconds are of a method: the bare base, with which a curve begins, has none of its own."""
    return [one for one in several if one.seconds]


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
