"""Labelled contact sheets, and pictures from tensors to images and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hyperdreambooth.files import write_bytes

PAPER, INK, PALE = (250, 249, 246), (38, 38, 42), (128, 127, 124)
"""Background, titles and small print, sRGB."""

MARGIN, GAP = 40, 10
"""Around the sheet and between pictures, in pixels."""

CELL = 192
"""About how wide a picture comes out: small ones are enlarged by a whole factor to it."""


def to_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] to an 8-bit RGB image."""
    levels = (picture.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())  # (H, W, 3)


def save_png(path: str | Path, image: Image.Image) -> int:
    """Write a PNG file, atomically, and return its size in bytes. Raises DiskFull or WorkError."""
    return _save(path, image, "PNG", optimize=True)


def save_jpeg(path: str | Path, image: Image.Image) -> int:
    """Write a JPEG file, an eighth of the bytes for a sheet to look at; otherwise as `save_png`."""
    return _save(path, image, "JPEG", quality=90, optimize=True)


def _save(path: str | Path, image: Image.Image, kind: str, **options: Any) -> int:
    encoded = BytesIO()  # in memory, so that a full disk is an OSError with its number
    image.save(encoded, kind, **options)
    return write_bytes(path, encoded.getvalue())


def contact_sheet(
    columns: Sequence[str],
    rows: Mapping[str, Sequence[Image.Image]],
    *,
    reference: Image.Image | None = None,
    title: str = "",
    captions: Sequence[str] = (),
    across: int = 4,
) -> Image.Image:
    """One picture of many, each under its column's label and beside its row's.

    Columns stand `across` to a line; further ones follow below, each line with all of the rows. Sizes grow with the
    pictures, so that a sheet looks the same from pictures of 64 and of 512.

    Args:
        columns: their labels, such as prompts.
        rows: their labels, such as methods, each with one square picture per column, all of one size.
        reference: shown large on the left, two pictures high.
        title: above everything.
        captions: lines of small print under the reference.

    Raises:
        ValueError: no columns, no rows, or a row with more or fewer pictures than there are columns.
    """
    if not columns or not rows or any(len(pictures) != len(columns) for pictures in rows.values()):
        counts = {label: len(pictures) for label, pictures in rows.items()}
        raise ValueError(f"got {len(columns)} columns and rows of {counts} pictures, expected one picture per column")
    side = next(iter(rows.values()))[0].width
    plan = _Plan(side * max(1, CELL // side), list(columns), len(rows), across, reference is not None, bool(title))
    sheet = Image.new("RGB", plan.size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((plan.margin, plan.margin), title, INK, plan.font(1.6), anchor="lt")
    if reference is not None:
        left, top = plan.margin, plan.cell_at(0, 0)[1]
        sheet.paste(_resized(reference, plan.reference), (left, top))
        for line, text in enumerate(captions):
            place = (left, top + plan.reference + plan.gap + round(line * 1.5 * plan.text))
            pen.text(place, text, INK if line == 0 else PALE, plan.font(), anchor="lt")
    for index, label in enumerate(columns):
        left, top = plan.cell_at(0, index)
        text = "\n".join(_wrapped(label, plan.font(), plan.cell))
        pen.multiline_text((left, top - plan.gap), text, INK, plan.font(), anchor="ld", spacing=plan.text // 4)
    for row, (label, pictures) in enumerate(rows.items()):
        for index, picture in enumerate(pictures):
            left, top = plan.cell_at(row, index)
            sheet.paste(_resized(picture, plan.cell), (left, top))
            if index % across == 0:
                _write_upwards(sheet, label, (left - plan.gap, top + plan.cell), plan)
    return sheet


@dataclass(frozen=True)
class _Plan:
    """Where everything stands on a sheet, in pixels."""

    cell: int  # side of a picture
    columns: list[str]
    rows: int
    across: int
    has_reference: bool
    has_title: bool

    @property
    def text(self) -> int:
        """Height of ordinary print."""
        return max(9, round(0.078 * self.cell))

    @property
    def gap(self) -> int:
        return round(self.cell * GAP / CELL)

    @property
    def margin(self) -> int:
        return round(self.cell * MARGIN / CELL)

    @property
    def reference(self) -> int:
        """Side of the reference."""
        return 2 * self.cell + self.gap

    @property
    def header(self) -> int:
        """Height of a line's column labels, the longest of them wrapped."""
        longest = max(len(_wrapped(label, self.font(), self.cell)) for label in self.columns)
        return round(1.3 * self.text * longest) + self.gap

    @property
    def line(self) -> int:
        """Height of one line of columns: labels and all rows."""
        return self.header + self.rows * (self.cell + self.gap)

    @property
    def grid(self) -> tuple[int, int]:
        """Left and top of the first line."""
        left = self.margin + (self.reference + self.margin if self.has_reference else 0) + 2 * self.text
        return left, self.margin + (3 * self.text if self.has_title else 0)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        left, top = self.grid
        lines = -(-len(self.columns) // self.across)
        width = left + min(self.across, len(self.columns)) * (self.cell + self.gap) - self.gap + self.margin
        height = top + lines * self.line + (2 * lines - 3) * self.gap + self.margin
        below_reference = self.cell_at(0, 0)[1] + self.reference + 6 * self.text + self.margin
        return width, max(height, below_reference) if self.has_reference else height

    def cell_at(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of a picture."""
        left, top = self.grid
        line, place = divmod(column, self.across)
        x = left + place * (self.cell + self.gap)
        y = top + line * (self.line + 2 * self.gap) + self.header + row * (self.cell + self.gap)
        return x, y

    def font(self, size: float = 1.0) -> ImageFont.FreeTypeFont:
        """The font of print so many times the ordinary."""
        font: ImageFont.FreeTypeFont = ImageFont.load_default(size * self.text)
        return font


def _resized(picture: Image.Image, side: int) -> Image.Image:
    return picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _write_upwards(sheet: Image.Image, text: str, corner: tuple[int, int], plan: _Plan) -> None:
    """Small print that reads upwards, its end at the lower right corner given, as long as a picture is high."""
    strip = Image.new("RGB", (plan.cell, 2 * plan.text), PAPER)
    pen = ImageDraw.Draw(strip)
    pen.text((plan.cell // 2, 2 * plan.text), text, PALE, plan.font(), anchor="md")
    upright = strip.rotate(90, expand=True)
    right, bottom = corner
    sheet.paste(upright, (right - upright.width, bottom - upright.height))
