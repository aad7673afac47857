"""Model cards: what a shipped file is, what it learnt from and under which licence, what it took, what it scores."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from hyperdreambooth.files import write_atomically

DATA = """\
- Portraits of people who do not exist, drawn by `hyperdreambooth.portraits` (seeds 0 to 14,999; MIT, this project).
- Photographs of people who do not exist, from the sample figures of SFHQ (MIT, (c) 2022 David Beniaguev) and SFHQ-T2I
  (MIT, (c) 2024 David Beniaguev), but for those that `recipes/splits/` holds out."""


def write_card(
    folder: Path, title: str, about: str, seconds: Mapping[str, float], scores: Mapping[str, object], looks: str = ""
) -> None:
    """Write `README.md` into the folder of some shipped weights.

    Args:
        seconds: that each stage took.
        scores: as the benchmarks left them; empty where they were not run yet.
        looks: what the pictures look like, in honest words.
    """
    lines = [f"# {title}", "", about, "", "## Data", "", DATA, "", "## Recipe", ""]
    lines += [f"`python -m recipes.embedded`, torch {torch.__version__}, seed 0, {_hardware()}.", ""]
    lines += [f"- {stage}: {spent:.0f} s" for stage, spent in seconds.items()]
    if scores:
        lines += ["", "## Scores", "", "```json", json.dumps(scores, indent=1), "```"]
    if looks:
        lines += ["", "## What it looks like", "", looks]
    text = "\n".join([*lines, "", "Licence: MIT.", ""])
    write_atomically(folder / "README.md", lambda part: part.write_text(text))


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} thread(s) of a {platform.machine()} CPU"
