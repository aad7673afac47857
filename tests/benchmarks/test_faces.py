"""The measure of found faces: right, false and missed ones told apart, on pictures whose faces are known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.faces import LABELS, Truth, framed, is_right, labelled, measure, summary, together
from hyperdreambooth.faces import Eyes, FaceBox
from hyperdreambooth.faces.boxes import FFHQ_EYES
from hyperdreambooth.sheet import save_png, to_image


def test_two_hundred_photographs_are_labelled() -> None:
    truths = labelled(Path("photos"), LABELS.read_text().splitlines())
    assert len({truth.file for truth in truths}) == 200
    assert {truth.seen for truth in truths} == {"yes", "part", "no"}
    assert all(0 < x < 1 and 0 < y < 1 and 0 < side < 1.2 for x, y, side in (t.place for t in truths if t.seen != "no"))


def test_a_find_is_right_where_the_face_is() -> None:
    truth = Truth(Path("a.jpg"), "yes", (0.5, 0.5, 0.3))
    assert is_right(FaceBox(35, 35, 30), truth, 100, 100)
    assert not is_right(FaceBox(50, 35, 30), truth, 100, 100)  # aside
    assert not is_right(FaceBox(45, 45, 10), truth, 100, 100)  # an eye
    assert not is_right(FaceBox(35, 35, 30), Truth(Path("a.jpg"), "no", (0, 0, 0)), 100, 100)


def test_everything_is_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save_png(tmp_path / f"{name}.jpg", to_image(torch.rand(3, 100, 100)))
    eyes = Eyes(*((x * 100, y * 100 + 2.5) for x, y in FFHQ_EYES))  # a tenth of their distance too low
    answers = iter([[FaceBox(18, 21, 65, eyes)], [], [FaceBox(60, 0, 20)]])
    found = together(one for _, one in measure(framed(tmp_path), lambda _: next(answers)))
    assert (found.photographs, found.right, found.missed, found.false) == (3, 1, ["b.jpg"], ["c.jpg"])
    assert found.off == [pytest.approx(0.1)]
    line = summary(found, eyes=True)
    assert re.match(r"1 of 3 found \(33\.3%\), 1 of 2 finds false \(50\.0%\), \d+ ms a picture; both eyes in 1,", line)
