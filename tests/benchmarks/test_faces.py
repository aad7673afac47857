"""The measure of found faces: right, false and missed ones told apart, on pictures whose faces are known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import faces
from benchmarks.faces import CUT, Truth, framed, is_right, labelled, main, measure, summary, together
from hyperdreambooth.faces import Eyes, FaceBox
from hyperdreambooth.faces.boxes import FFHQ_EYES
from hyperdreambooth.sheet import save_png, to_image
from recipes.photographs import LABELLED


def test_two_hundred_photographs_are_labelled() -> None:
    truths = labelled(Path("photos"), LABELLED.read_text().splitlines())
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


def test_eyes_are_sought_again_in_the_cut_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of photographs that are not framed, whose own eyes have no place."""
    face, sought = FaceBox(20, 30, 26), []
    for folder, size in (("sfhq", 100), ("sfhq-t2i", 160)):
        (tmp_path / folder).mkdir()
        save_png(tmp_path / folder / "a.jpg", to_image(torch.rand(3, 100, size)))
    (tmp_path / "labels.txt").write_text("a.jpg yes 0.206 0.43 0.163\n")
    found = {100: FaceBox(18, 21, 65, Eyes(*((x * 100, y * 100) for x, y in FFHQ_EYES))), 160: face}

    def eyes_at(picture: torch.Tensor, box: FaceBox) -> Eyes | None:
        if picture.shape[1:] != (CUT, CUT):  # the whole photograph, of a face whose detector knows of no eyes
            return None
        sought.append(box.side / CUT)
        left, right = ((CUT * x, CUT * (y - 0.05)) for x, y in FFHQ_EYES)  # a fifth of their distance too high
        return Eyes(left, right)

    monkeypatch.setattr(faces, "find_eyes", eyes_at)
    monkeypatch.setattr(faces, "find_faces", lambda picture, _: [found[picture.shape[2]]])
    monkeypatch.setattr(faces, "LABELLED", tmp_path / "labels.txt")
    main(tmp_path, output=tmp_path / "faces.json")
    told = json.loads((tmp_path / "faces.json").read_text())
    off = {"pairs": 1, "mean": pytest.approx(0.2), "percentile_95": pytest.approx(0.2)}
    assert told["sfhq"]["eyes_after_the_cut"] == told["sfhq-t2i, both eyes to be seen"]["eyes_after_the_cut"] == off
    assert told["sfhq"]["eyes"]["mean"] == pytest.approx(0, abs=1e-6) and "eyes" not in told["sfhq-t2i, all"]
    assert told["sfhq-t2i, no face"]["photographs"] == 0 and sought == [0.65, 0.65]
