from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdreambooth.errors import UserError
from recipes import photographs
from recipes.photographs import SPLITS, Photographs, frame_photographs, load_photographs

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "photos"
LISTS = {split: (ROOT / "recipes" / "splits" / f"photographs-{split}.txt").read_text().split() for split in SPLITS[1:]}


def test_splits_are_disjoint_and_of_the_sizes_agreed() -> None:
    tuning, reporting = LISTS["tuning"], LISTS["reporting"]
    assert len(tuning) == len(set(tuning)) == 57 and len(reporting) == len(set(reporting)) == 190
    assert not set(tuning) & set(reporting)
    assert all(name.startswith("sfhq/") for name in tuning)
    assert sum(name.startswith("sfhq-t2i/") for name in reporting) == 100


def test_nobody_is_held_out_who_is_seen_again_in_a_photograph_that_trains() -> None:
    """SFHQ shows some of its people twice: these were found by their likeness, then looked at."""
    again = """ethnicity_034 hair_color_023 age_X_ethnicity_2_031 hair_style_023 hair_style_022 age_X_ethnicity_2_009
        age_X_ethnicity_2_014 ethnicity_020 hair_style_043 hair_style_006 hair_color_037 age_026 expression_022"""
    held = {name for names in LISTS.values() for name in names}
    assert not held & {f"sfhq/variability_{name}.jpg" for name in again.split()}


def test_every_listed_photograph_exists() -> None:
    if not SHARED.is_dir():
        pytest.skip("the photographs that the lists name are not here: they stay outside the repository")
    assert not [name for names in LISTS.values() for name in names if not (SHARED / name).is_file()]


def test_the_splits_together_are_all_photographs_each_once(framed: Photographs) -> None:
    parts = [framed.split(name) for name in SPLITS]
    assert [len(part.names) for part in parts] == [6, 1, 1]
    assert sorted(name for part in parts for name in part.names) == sorted(framed.names)
    for part in parts:
        for name, picture in zip(part.names, part.pictures, strict=True):
            assert torch.equal(picture, framed.pictures[framed.names.index(name)])


def test_held_out_photographs_come_in_the_order_of_their_list() -> None:
    names = tuple(reversed(LISTS["tuning"][:5]))
    assert Photographs(torch.zeros(5, 3, 2, 2), names).split("tuning").names == tuple(LISTS["tuning"][:5])


def test_whoever_is_held_out_stays_so_in_a_folder_above_or_below() -> None:
    names = tuple(LISTS["tuning"][:2] + LISTS["reporting"][:2] + ["sfhq/somebody.jpg"])
    for path in (lambda name: name.rpartition("/")[2], lambda name: f"photos/{name}"):
        some = Photographs(torch.zeros(5, 3, 2, 2), tuple(map(path, names)))
        assert some.split("training").names == (path("sfhq/somebody.jpg"),)
        assert some.split("reporting").names == tuple(map(path, LISTS["reporting"][:2]))


def test_the_centre_is_cut_out(framed: Photographs) -> None:
    centre = framed.centre(16)
    assert centre.shape == (8, 3, 16, 16)
    assert torch.equal((centre * 255).round().byte(), framed.pictures[:, :, 4:20, 4:20])


def test_a_folder_of_photographs_is_framed_once(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "framed.safetensors"
    lines = list(frame_photographs(photos, cache, 24))
    framed = load_photographs(cache)
    assert framed.pictures.shape == (len(framed.names), 3, 24, 24) and framed.pictures.dtype == torch.uint8
    assert set(framed.names) <= {*(f"{number}.png" for number in range(5)), "deep/er/5.png"}
    assert f"{len(framed.names)} photographs framed, {6 - len(framed.names)} without a face" in lines[-1]
    assert not list(frame_photographs(tmp_path / "gone", cache, 24))


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files in which a face is looked for, as often as it is; 3.png has none."""
    seen, find = list[str](), photographs._framed

    def noted(file: Path, size: int) -> np.ndarray | None:
        seen.append(file.name)
        return None if file.name == "3.png" else find(file, size)

    monkeypatch.setattr(photographs, "_framed", noted)
    return seen


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_framing_goes_on_where_it_was_stopped(
    stop: int, photos: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Closed behind a line, then by an error before the whole is written."""
    whole, cache = tmp_path / "whole.safetensors", tmp_path / "cache" / "framed.safetensors"
    expected = list(frame_photographs(photos, whole, 24, each=2))
    looked_at.clear()
    assert list(islice(frame_photographs(photos, cache, 24, each=2), stop)) == expected[:stop]
    assert len(looked_at) == 2 * stop and not cache.exists()
    with monkeypatch.context() as patch:
        patch.setattr(photographs, "save_tensors", fail)  # of the whole, when all parts are there
        with pytest.raises(InterruptedError):
            list(frame_photographs(photos, cache, 24, each=2))
    assert sorted(looked_at) == [f"{number}.png" for number in range(6)]  # once each
    assert list(frame_photographs(photos, cache, 24, each=2)) == expected
    assert len(looked_at) == 6 and cache.read_bytes() == whole.read_bytes()
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def fail(*_: object) -> None:
    raise InterruptedError


def test_parts_of_other_files_are_not_mixed_in(photos: Path, looked_at: list[str], tmp_path: Path) -> None:
    """Between stop and resumption a file goes, one comes, and one is replaced under its name."""
    folder, cache, whole = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "framed", tmp_path / "whole"
    list(islice(frame_photographs(folder, cache, 24, each=2), 3))
    looked_at.clear()
    shutil.copy(folder / "4.png", folder / "1.png")
    (folder / "2.png").rename(folder / "2b.png")
    list(frame_photographs(folder, cache, 24, each=2))
    assert looked_at == ["0.png", "1.png", "2b.png", "3.png"]  # the part of 4 and 5 stayed
    list(frame_photographs(folder, whole, 24, each=6))
    assert cache.read_bytes() == whole.read_bytes() and "2b.png" in load_photographs(cache).names


def test_parts_that_were_left_beside_a_finished_file_are_removed(photos: Path, tmp_path: Path) -> None:
    """As by a process that was killed between writing the one and removing the others."""
    cache = tmp_path / "framed.safetensors"
    list(islice(frame_photographs(photos, cache, 24, each=2), 2))
    cache.write_bytes(b"whole")
    assert len(list(tmp_path.iterdir())) == 3
    assert not list(frame_photographs(photos, cache, 24, each=2))
    assert [path.name for path in tmp_path.iterdir()] == [cache.name]


def test_a_folder_without_faces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pictures"):
        list(frame_photographs(tmp_path, tmp_path / "framed.safetensors", 24))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 pictures without a face"):
        list(frame_photographs(tmp_path, tmp_path / "framed.safetensors", 24))
    assert not list(tmp_path.glob("framed*"))
