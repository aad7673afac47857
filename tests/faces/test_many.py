"""Many people's faces against the same found one by one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from hyperdreambooth.errors import WorkError
from hyperdreambooth.faces import crop_face, cut_people, in_order, read_picture
from hyperdreambooth.faces.boxes import FaceBox
from hyperdreambooth.folders import Encoded, Source


def test_processes_cut_what_one_by_one_is_cut(tmp_path: Path, portrait_file: Path) -> None:
    """A portrait, one that is mirrored, one in memory, and a file that is no picture, by two processes and by none."""
    mirrored, broken = tmp_path / "mirrored.png", tmp_path / "broken.png"
    Image.open(portrait_file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    broken.write_bytes(b"no picture")
    people: dict[str, list[Source]] = {
        "ann": [portrait_file, broken, mirrored, portrait_file],
        "bea": [broken],
        "carl": [Encoded("row 7", mirrored.read_bytes)],
    }
    expected = {
        path: (crop_face(read_picture(path), 24).picture * 255).round().byte() for path in (portrait_file, mirrored)
    }
    for processes in (1, 2):
        cut = dict(cut_people(people, 24, 2, processes))
        assert list(cut) == ["ann", "bea", "carl"]
        assert torch.equal(cut["ann"].pictures, torch.stack([expected[portrait_file], expected[mirrored]]))
        assert (cut["ann"].tried, cut["bea"].tried, cut["carl"].tried) == (3, 1, 1)
        assert cut["bea"].pictures.shape == (0, 3, 24, 24) and torch.equal(cut["carl"].pictures[0], expected[mirrored])
        assert ["left out" in note and "broken.png" in note for note in cut["bea"].notes] == [True]


@dataclass(frozen=True)
class Corner:
    """Sees a face at the top left of everything."""

    side: float

    def __call__(self, picture: Tensor) -> list[FaceBox]:
        return [FaceBox(0.0, 0.0, self.side)]


def test_a_detector_of_ones_own_is_asked_by_every_process(portrait_file: Path) -> None:
    corner = Corner(20.0)
    expected = crop_face(read_picture(portrait_file), 24, corner).picture
    assert not torch.equal(expected, crop_face(read_picture(portrait_file), 24).picture)
    for processes in (1, 2):
        ((_, cut),) = cut_people({"ann": [portrait_file]}, 24, None, processes, corner)
        assert torch.equal(cut.pictures[0], (expected * 255).round().byte())


def test_a_process_that_dies_is_one_clear_error() -> None:
    with pytest.raises(WorkError, match="died"):
        list(in_order(os._exit, [1, 1], 2))


def test_tasks_are_fetched_as_they_are_needed() -> None:
    fetched = []
    results = in_order(abs, (fetched.append(task) or task for task in range(-100, 0)), 2)
    assert next(results) == 100 and len(fetched) < 20
    results.close()
