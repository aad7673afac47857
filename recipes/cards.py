"""Model cards: what a shipped file is, what it learnt from and under which licence, what it took, what it scores."""

from __future__ import annotations

import json
import os
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hyperdreambooth.files import write_atomically

PORTRAITS = "Portraits of people who do not exist, drawn by `hyperdreambooth.portraits` (seeds 0 to {last:,}; MIT)."
SOURCES = {  # by folder
    "sfhq": "of people who do not exist, from the sample figures of SFHQ (MIT, (c) 2022 David Beniaguev)",
    "sfhq-t2i": "of people who do not exist, from the sample figures of SFHQ-T2I (MIT, (c) 2024 David Beniaguev)",
}


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        title: of the card.
        about: what the network is, in a sentence.
        data: what it learnt from, a line each.
        seconds: that each training took.
        adopted: whether trainings began with what had shipped before, whose seconds are among those.
        scores: as the benchmarks left them; empty where they were not run yet.
        looks: what its pictures look like, in honest words.
    """

    title: str
    about: str
    data: Sequence[str]
    seconds: Mapping[str, float]
    adopted: bool = False
    scores: Mapping[str, object] = field(default_factory=dict)
    looks: str = ""

    def write(self, folder: Path) -> None:
        """Write `README.md` into the folder of the shipped weights."""
        text = "\n".join([*self._lines(), "", "Licence: MIT.", ""])
        write_atomically(folder / "README.md", lambda part: part.write_text(text))

    def _lines(self) -> list[str]:
        lines = [f"# {self.title}", "", self.about, "", "## Data", "", *(f"- {line}" for line in self.data), ""]
        goes = " In several goes, each from what the one before had shipped (`--only adopt`)." if self.adopted else ""
        lines += [
            "## Recipe",
            "",
            f"`python -m recipes.embedded`, torch {torch.__version__}, seed 0, {hardware()}.{goes}",
            "",
        ]
        lines += [f"- {training}: {spent:.0f} s" for training, spent in self.seconds.items()]
        if self.scores:
            lines += ["", "## Scores", "", "```json", json.dumps(self.scores, indent=1), "```"]
        if self.looks:
            lines += ["", "## What it looks like", "", self.looks.strip()]
        return lines


def seconds_in(folder: Path) -> dict[str, float]:
    """What each training took, as the card in a folder says; nothing where there is no card."""
    card = folder / "README.md"
    text = card.read_text() if card.exists() else ""
    return {training: float(spent) for training, spent in re.findall(r"^- (.+): (\d+) s$", text, re.MULTILINE)}


def data_lines(last_seed: int | None, photographs: Sequence[str]) -> list[str]:
    """What there was to learn from: portraits up to a seed (None: no portraits), photographs by their files' names."""
    folders = Counter(name.rpartition("/")[0].partition("/")[0] for name in photographs)
    unknown = "whose licence and consent are those of their folder"
    counted = [f"{count:,} photographs {SOURCES.get(folder, unknown)}." for folder, count in sorted(folders.items())]
    portraits = [] if last_seed is None else [PORTRAITS.format(last=last_seed)]
    return [*portraits, *counted, "Held out of training: the lists in `recipes/splits/`."]


def hardware() -> str:
    """The machine that trained, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores of a {platform.machine()} CPU"
