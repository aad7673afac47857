"""What the verifier doubts is no face, unless its eyes are seen; without a verifier nothing is doubted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hyperdreambooth.embedded import FACE_VERIFIER
from hyperdreambooth.faces import FaceBox, finding, read_picture, verifier
from hyperdreambooth.faces.boxes import FFHQ_CENTRE, FFHQ_SIDE
from hyperdreambooth.faces.cascades import Seen
from hyperdreambooth.faces.eyes import EyeMark
from hyperdreambooth.faces.verifier import is_doubted

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "photos"


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Whatever verifier was read before, or is now."""
    verifier._shipped.cache_clear()
    yield
    verifier._shipped.cache_clear()


def test_true_faces_are_not_doubted_and_ears_and_shoulders_are() -> None:
    """Of photographs that it has not learnt from; in FFHQ's framing shoulders are below and ears beside the face."""
    reporting = (ROOT / "recipes" / "splits" / "photographs-reporting.txt").read_text().split()
    files = [PHOTOS / name for name in reporting if name.startswith("sfhq/")][:30]
    if not files[0].is_file():
        pytest.skip("the photographs are not beside this repository (../shared/photos)")
    faces, others = 0, 0
    for file in files:
        picture = read_picture(file)  # (3, 256, 256)
        x, y = (round(256 * (share - FFHQ_SIDE / 2)) for share in FFHQ_CENTRE)
        faces += not is_doubted(picture, FaceBox(x, y, round(256 * FFHQ_SIDE)))
        others += is_doubted(picture, FaceBox(0, 190, 66)) + is_doubted(picture, FaceBox(190, 150, 60))
    assert faces >= 29 and others >= 45, (faces, others)


def test_without_a_verifier_nothing_is_doubted(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verifier, "FACE_VERIFIER", tmp_path / "none.safetensors")
    assert FACE_VERIFIER.is_file() and not is_doubted(torch.rand(3, 64, 64), FaceBox(10, 10, 20))


@pytest.mark.parametrize(
    ("doubted", "marks", "votes", "face"),
    [
        *((False, 0, 30.0, True), (False, 0, 70.0, True), (False, 0, 20.0, False)),
        *((True, 0, 30.0, False), (True, 0, 700.0, False), (True, 2, 30.0, False), (True, 3, 30.0, True)),
    ],
)
def test_what_is_doubted_is_a_face_where_its_eyes_are_seen(
    doubted: bool, marks: int, votes: float, face: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "is_doubted", lambda picture, box: doubted)
    eyes = [EyeMark(0.31, 0.4), EyeMark(0.69, 0.4), EyeMark(0.69, 0.4)] if marks == 3 else [EyeMark(0.3, 0.4)] * marks
    monkeypatch.setattr(finding, "eye_marks", lambda picture, box: eyes)
    candidate = finding._Candidate(FaceBox(10, 10, 40), votes, votes)
    assert bool(finding._faces([candidate], torch.zeros(3, 64, 64))) == face


@pytest.mark.parametrize("doubted", [False, True])
def test_a_closer_look_is_not_believed_where_it_is_doubted(doubted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [(1.0, 1.0, [Seen(10.0, 10.0, 30.0, 20)])] * 12  # copies' scale, weight of a vote, what is seen
    monkeypatch.setattr(finding, "_closer", lambda picture: iter(looks))
    monkeypatch.setattr(finding, "is_doubted", lambda picture, box: doubted)
    assert len(finding._seen_closer(torch.zeros(3, 64, 64), [])) == (0 if doubted else 1)
