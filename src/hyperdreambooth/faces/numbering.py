"""A picture with its faces numbered, for a person to choose from."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hyperdreambooth.faces.boxes import FaceBox
from hyperdreambooth.sheet import to_image

LINE, PAPER = "#00e676", "#000000"


def number_faces(picture: Tensor, faces: Sequence[FaceBox]) -> Image.Image:
    """A picture (3, H, W) in [0, 1] with a box around each face and its number, from 1, at the box's corner."""
    image = to_image(picture)
    pen = ImageDraw.Draw(image)
    thick = max(1, round(max(image.size) / 250))
    font = ImageFont.load_default(max(12.0, max(image.size) / 25))
    for number, face in enumerate(faces, start=1):
        left, top = face.left, face.top
        pen.rectangle((left, top, left + face.side, top + face.side), outline=LINE, width=thick)
        corner = max(left, 0.0) + thick, max(top, 0.0) + thick
        pen.rectangle(pen.textbbox(corner, str(number), font=font), fill=PAPER)
        pen.text(corner, str(number), fill=LINE, font=font)
    return image
