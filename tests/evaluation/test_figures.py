"""Which pictures stand on a report's sheets: each is one flat colour, found again where it belongs."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperdreambooth.evaluation.figures import sheets
from hyperdreambooth.evaluation.prompts import NOBODY, PLAIN, PROMPTS
from hyperdreambooth.evaluation.scores import Scoring
from tests.evaluation.test_scores import OURS, PORTRAITS, REFERENCES, Colour, add, begin, panel

METHODS = ("base", "dreambooth", "dreambooth@10", "k-1", "no-hyper", "only-hyper", OURS)
_NUMBERS = count()


def another() -> Colour:
    """A colour that no other picture has."""
    number = next(_NUMBERS)
    return 8 * (number % 16) + 100, 12 * (number // 16), 60


def colours_in(image: Image.Image) -> set[object]:
    return {colour for _, colour in image.getcolors(1 << 20) or []}


def test_every_sheet_shows_the_first_pictures_of_its_methods_and_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]  # of each person, however they look
    monkeypatch.setattr(Scoring, "another", lambda *_: torch.tensor(true)[:, :, None, None].expand(3, 3, 8, 8) / 255)
    prompts = [*PROMPTS[:10], NOBODY]
    counts = {prompt: 2 if prompt == PLAIN else 1 for prompt in prompts}
    run = begin(tmp_path, prompts=[[prompt, counts[prompt], number] for number, prompt in enumerate(prompts)])
    colours: dict[tuple[str, str, str], list[Colour]] = {}
    for method in METHODS:
        for person in PORTRAITS[:2]:
            drawn = {prompt: [another() for _ in range(counts[prompt])] for prompt in prompts}
            colours |= {(method, person, prompt): some for prompt, some in drawn.items()}
            add(run, method, {person: drawn})
    found = {one.file: colours_in(one.image) for one in sheets(Scoring(run, panel()))}
    assert list(found) == ["gallery.jpg", "people.jpg", "stages.jpg", "sheet-1.jpg", "sheet-2.jpg"]
    styles = [PROMPTS[row] for row in (1, 2, 3, 4, 8)]  # watercolor, bronze, pencil, comic, pixel art
    stages = {"base", "only-hyper", OURS, "no-hyper"}
    for (method, person, prompt), (first, *later) in colours.items():
        expected = {
            "gallery.jpg": (method, person) == (OURS, PORTRAITS[0]) and prompt != NOBODY,
            "people.jpg": (method, person) == (OURS, PORTRAITS[1]) and prompt in prompts[:6],
            "stages.jpg": method in stages and prompt == PLAIN,
            "sheet-1.jpg": person == PORTRAITS[0] and method not in ("base", "dreambooth@10") and prompt in styles,
            "sheet-2.jpg": person == PORTRAITS[1] and method not in ("base", "dreambooth@10") and prompt in styles,
        }
        assert {file: first in shown for file, shown in found.items()} == expected, (method, person, prompt)
        assert not any(one in shown for one in later for shown in found.values())
    assert REFERENCES[0] in found["gallery.jpg"] and REFERENCES[1] not in found["gallery.jpg"]
    assert REFERENCES[1] in found["people.jpg"] and REFERENCES[0] not in found["people.jpg"]
    assert {*REFERENCES[:2]} <= found["stages.jpg"]
    shown = {file: [colour in colours for colour in true] for file, colours in found.items() if "sheet" in file}
    assert shown == {"sheet-1.jpg": [True, False, False], "sheet-2.jpg": [False, True, False]}


def test_without_the_other_stages_there_is_no_sheet_of_stages(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add(run, OURS, {PORTRAITS[0]: {PLAIN: [another() for _ in range(3)]}})
    assert [one.file for one in sheets(Scoring(run, panel()))] == ["gallery.jpg"]
