"""What is measured on a model, one phase a row, and what rows say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

OURS, SET_UP = "fine-tune, 1 noise", "fine-tuning begun"
PLAIN_PICTURE = "plain picture"
ONE, EACH = ", one person", ", a person each"
FEW_STEPS = 100  # of pre-optimisation, the fewest that are spoken of
MANY = 15_000  # people, as many as the paper pre-optimises


@dataclass
class Row:
    """One line of the table; `seconds` and `flops` are of one `unit`, seconds being the median."""

    phase: str
    unit: str
    seconds: float
    flops: int
    peak_bytes: int
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds


def noises_of(count: int) -> str:
    """How a row's name says it: "1 noise", "4 noises"."""
    return f"{count} noise{'s' * (count > 1)}"


def people_in(batch: int) -> str:
    """How a row's name says it before its noises: nothing of one person, "4 people x " of more."""
    return f"{batch} people x " * (batch > 1)


def ratios(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """What is compared within a run.

    "plain over ours": how many times as long a step of each plain loop takes as one of ours with as many samples
    through the U-Net, and the plain pipeline's guided picture as ours; "mixed over one": a pass over N people against
    one over N rows of one person.
    """
    seconds = {row.phase: row.seconds for row in rows}
    plain = {phase: (time, _ours(phase, seconds)) for phase, time in seconds.items() if phase.startswith("plain")}
    mixed = {phase.removesuffix(EACH): time for phase, time in seconds.items() if phase.endswith(EACH)}
    return {
        "plain over ours": {phase: time / ours for phase, (time, ours) in plain.items() if ours is not None},
        "mixed over one": {phase: time / seconds[phase + ONE] for phase, time in mixed.items()},
    }


def _ours(plain: str, seconds: Mapping[str, float]) -> float | None:
    """Seconds of ours that do the work of a plain row; None where they were not timed."""
    if plain == PLAIN_PICTURE:
        return next((time for phase, time in seconds.items() if phase.startswith("guided picture")), None)
    noises = plain.rpartition(", ")[2]
    return seconds.get(f"fine-tune, {noises}" if noises.endswith("noises") else OURS)


def totals(rows: Iterable[Row]) -> dict[str, float]:
    """Of what was timed: one person, 40 steps of one noise, and many in the best batch of each number of noises.

    Seconds begin with a face that was found: finding it is work of a CPU's core, which benchmarks/faces.py measures.
    """
    found = list(rows)
    many = _best_batches(found)
    seconds = {row.phase.partition(",")[0]: row.seconds for row in found if row.phase != OURS}
    tuned = next((40 * row.seconds for row in found if row.phase == OURS), None)
    if tuned is None or not {"hypernetwork", "VAE encode"} <= set(seconds):
        return many
    person = seconds["hypernetwork"] + seconds["VAE encode"] + seconds.get(SET_UP, 0.0) + tuned
    drawn = {"face to first picture (s)": person + seconds["guided picture"]} if "guided picture" in seconds else {}
    return {"personalise (s)": person} | drawn | many


def _best_batches(rows: Iterable[Row]) -> dict[str, float]:
    """Of pre-optimisation, by the noises of a step: the people in the batch that does most an hour, and its hours."""
    best = dict[str, tuple[float, int]]()  # people an hour, and in the batch
    asked = f"people an hour, {FEW_STEPS} steps"
    for row in rows:
        if asked in row.facts:
            people, _, noises = row.phase.rpartition("batch of ")[2].partition(" x ")
            best[noises] = max(best.get(noises, (0.0, 0)), (row.facts[asked], int(people)))
    told = dict[str, float]()
    for noises, (rate, people) in best.items():
        told[f"best batch of pre-optimisation, {noises} (people)"] = people
        told[f"{MANY:,} people, {FEW_STEPS} steps of {noises} (hours)"] = MANY / rate
    return told
