"""Contact sheets: every picture at its place, unharmed; pictures to files and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyperdreambooth.faces import to_picture
from hyperdreambooth.sheet import CELL, PAPER, contact_sheet, save_png, to_image


def plain(colour: tuple[int, int, int], side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def where(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a colour's pixels, which must fill that rectangle."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(axis=-1))
    box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    assert len(rows) == (box[2] - box[0]) * (box[3] - box[1])
    return box


COLOURS = {
    "one": [(200, 10, 10), (10, 200, 10), (10, 10, 200)],
    "two": [(200, 200, 10), (10, 200, 200), (200, 10, 200)],
}


def test_every_picture_stands_at_its_row_and_column() -> None:
    """Three columns, two to a line: the third goes below, with all of its rows."""
    rows = {label: [plain(colour) for colour in colours] for label, colours in COLOURS.items()}
    sheet = contact_sheet(["a", "b", "c"], rows, reference=plain((90, 0, 90)), title="t", captions=["x"], across=2)
    boxes = {label: [where(sheet, colour) for colour in colours] for label, colours in COLOURS.items()}
    for box in (*boxes["one"], *boxes["two"]):
        assert (box[2] - box[0], box[3] - box[1]) == (CELL, CELL)
    (one_a, one_b, one_c), (two_a, two_b, two_c) = boxes["one"], boxes["two"]
    assert one_a[1] == one_b[1] and two_a[1] == two_b[1]  # a row
    assert one_a[0] == two_a[0] == one_c[0] == two_c[0] and one_b[0] == two_b[0]  # columns
    assert one_a[3] < two_a[1] and two_a[3] < one_c[1] and one_c[3] < two_c[1] and one_a[2] < one_b[0]
    reference = where(sheet, (90, 0, 90))
    assert reference[1] == one_a[1] and reference[3] == two_a[3] and reference[2] < one_a[0]


def test_text_is_written_and_nothing_runs_over_the_edge() -> None:
    label = "a photo of a [V] face in watercolor style wearing sunglasses at the beach"
    sheet = contact_sheet([label] * 4, {"after fine-tuning": [plain((200, 10, 10))] * 4}, across=4)
    pixels = np.asarray(sheet)
    top = where(Image.fromarray(pixels[:, : pixels.shape[1] // 4]), (200, 10, 10))[1]
    assert (pixels[:top] != PAPER).any()
    border = [pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]]
    assert all((edge == PAPER).all() for edge in border)


def test_a_sheet_scales_with_its_pictures() -> None:
    small = contact_sheet(["a"], {"r": [plain((1, 2, 3), 64)]})
    large = contact_sheet(["a"], {"r": [plain((1, 2, 3), 512)]})
    assert large.width / small.width == pytest.approx(512 / 192, rel=0.02)


@pytest.mark.parametrize(("columns", "rows"), [([], {"r": []}), (["a"], {}), (["a", "b"], {"r": [plain((0, 0, 0))]})])
def test_rows_that_do_not_fit_are_refused(columns: list[str], rows: dict[str, list[Image.Image]]) -> None:
    with pytest.raises(ValueError, match="one picture per column"):
        contact_sheet(columns, rows)


def test_pictures_survive_the_way_to_a_file_and_back(tmp_path: Path, generator: torch.Generator) -> None:
    picture = (torch.rand(3, 20, 30, generator=generator) * 255).round() / 255
    size = save_png(tmp_path / "new" / "a.png", to_image(picture))
    assert size == (tmp_path / "new" / "a.png").stat().st_size
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert torch.allclose(to_picture(image), picture, atol=1e-6)
