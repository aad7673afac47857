"""What a face verifier learns from is what it says, and it learns from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperdreambooth.errors import UserError
from hyperdreambooth.faces import FaceBox, find_faces, read_picture
from hyperdreambooth.faces.verifier import SIDE, FaceVerifier, square_of
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.sheet import save_png, to_image
from recipes.faces import ELSEWHERE, FACE, MISTAKEN, gather, squares_of, train_verifier, varied
from recipes.judges import fresh
from recipes.photographs import LABELLED, learnt_faces


def test_squares_of_a_photograph_lie_on_its_face_and_off_it(photos: Path) -> None:
    file = photos / "1.png"
    kinds, squares = squares_of(file)
    picture = read_picture(file)
    (face,) = find_faces(picture)
    whole = square_of(picture, face)
    assert (kinds == FACE).sum() == (kinds == ELSEWHERE).sum() == 6 and (kinds == MISTAKEN).sum() <= 12
    assert squares.shape == (len(kinds), 3, SIDE, SIDE)
    apart = (torch.from_numpy(squares).float() / 255 - whole).abs().mean(dim=(1, 2, 3))
    assert apart[kinds == FACE].mean() < 0.8 * apart[kinds == ELSEWHERE].mean()
    again = squares_of(file)
    assert (again[0] == kinds).all() and (again[1] == squares).all()


def test_nobody_is_learnt_from_who_judges_it(photos: Path, tmp_path: Path) -> None:
    labelled = [line.split()[0] for line in LABELLED.read_text().splitlines() if line and line[0] != "#"]
    held_out = [labelled[0], "sample_2x4_003.jpg", "sample_2x4_005.jpg"]  # labelled, of tuning, of reporting
    for name in (*held_out, "somebody.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert len(labelled) == 200
    assert [file.name for file in learnt_faces(tmp_path)] == ["somebody.jpg"]


def test_gathering_goes_on_and_says_when_there_is_nothing(photos: Path, tmp_path: Path) -> None:
    cache, once = tmp_path / "squares.safetensors", tmp_path / "once.safetensors"
    lines = gather(photos, cache, each=2)
    next(lines)
    lines.close()
    assert list(gather(photos, cache, each=2))[-1].endswith("squares") and list(gather(photos, once))
    for name, tensor in load_tensors(cache)[0].items():
        assert torch.equal(tensor, load_tensors(once)[0][name])
    assert list(gather(photos, cache)) == [] and {file.name for file in tmp_path.iterdir()} == {cache.name, once.name}
    (empty := tmp_path / "walls").mkdir()
    save_png(empty / "wall.png", to_image(torch.full((3, 64, 64), 0.6)))
    (empty / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="holds no face beyond doubt, expected photographs"):
        list(gather(empty, tmp_path / "nothing.safetensors"))


def test_a_verifier_learns_to_tell_them_apart(tmp_path: Path) -> None:
    """Two kinds that any network can tell apart: bright above, bright below."""
    squares = torch.rand(60, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.5
    kinds = torch.tensor([FACE, MISTAKEN, ELSEWHERE]).repeat(20)
    squares[kinds == FACE, :, : SIDE // 2] += 0.5
    squares[kinds != FACE, :, SIDE // 2 :] += 0.5
    cache = tmp_path / "squares.safetensors"
    save_tensors(cache, {"kinds": kinds, "squares": (squares * 255).byte()})
    verifier = fresh(FaceVerifier)
    config = FitConfig(steps=60, lr=3e-3)
    reports = list(train_verifier(verifier, cache, 24, config, torch.Generator().manual_seed(0)))
    assert sum(report.metrics["right"] for report in reports[-10:]) / 10 > 0.95
    with torch.no_grad():
        assert ((verifier.eval()(squares) > 0) == (kinds == FACE)).float().mean() > 0.95


def test_varied_squares_are_of_the_same_things() -> None:
    squares = torch.zeros(40, 3, SIDE, SIDE)
    squares[:, :, SIDE // 2 :] = 1.0
    shown = varied(squares, torch.Generator().manual_seed(0))
    assert shown.shape == squares.shape and not torch.allclose(shown[0], shown[1], atol=0.1)
    assert (shown[:, :, -8:, 12:28].mean(dim=(1, 2, 3)) > shown[:, :, :8, 12:28].mean(dim=(1, 2, 3))).all()
    again = varied(squares, torch.Generator().manual_seed(0))
    assert torch.equal(shown, again)


def test_a_box_is_seen_with_what_is_around_it() -> None:
    picture = torch.zeros(3, 100, 100)
    picture[:, 30:70, 30:70] = 1.0
    square = square_of(picture, FaceBox(30, 30, 40))
    assert square.shape == (3, SIDE, SIDE)
    assert abs(float(square.mean()) - (1 / 1.4) ** 2) < 0.02 and square[:, 20, 20].min() > 0.99
    assert torch.allclose(square, square.flip(-1), atol=1e-5)
