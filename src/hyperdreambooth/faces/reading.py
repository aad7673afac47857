"""Any picture file to a clean RGB tensor, or one clear line that says why not."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hyperdreambooth.errors import BadPicture

SMALLEST_SIDE = 16
"""Pictures with a side below this, in pixels, show no face."""

LARGEST_SIDE = 2048
"""Pictures with a side above this, in pixels, are reduced while they are read: a face needs no more."""

MOST_PIXELS = 80_000_000
"""Pictures of more pixels are refused from their header alone; below Pillow's own limit, which stays on."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
"""What is opened at all: still pictures that Pillow decodes by itself, without starting another program."""

_EXPECTED = "expected a photograph as JPEG, PNG, WebP, BMP or TIFF"
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def read_picture(path: str | Path) -> Tensor:
    """Read a picture file: upright, in RGB, of any colour mode and bit depth.

    EXIF rotation is applied; transparency is laid on white; greyscale, palette and CMYK become RGB; 16-bit greys are
    divided by 65,535, deeper and floating-point ones by their own maximum. Of an animation, the first frame is read.

    Args:
        path: a file of one of `FORMATS`.

    Returns:
        (3, H, W) float32 in [0, 1]; the longer side is at most `LARGEST_SIDE`, larger pictures come reduced.

    Raises:
        BadPicture: missing, unreadable, a folder, not a picture, truncated, or too small or too large to be one.
    """
    path = Path(path)
    _check_is_file(path)
    try:
        with _open(path) as image:
            _check_size(path, image)
            image.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))  # lets a large JPEG be decoded at 1/2, 1/4 or 1/8
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
            return _to_tensor(upright)
    except BadPicture:
        raise
    except Exception as error:  # on damaged bytes a decoder may raise anything
        raise BadPicture(f"got {path}, damaged or cut off ({error}), {_EXPECTED}: save or copy it again") from error


def _check_is_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise BadPicture(f"got {path}, which does not exist, {_EXPECTED}: check the path") from error
    except (OSError, ValueError) as error:
        raise BadPicture(f"got {path}, which cannot be reached ({error}), {_EXPECTED}: check the path") from error
    if stat.S_ISDIR(mode):
        raise BadPicture(f"got {path}, a folder, {_EXPECTED}: name one picture inside it")
    if not stat.S_ISREG(mode):
        raise BadPicture(f"got {path}, which is not a regular file, {_EXPECTED}: name a picture file")


def _open(path: Path) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture(_too_large(path, "more pixels than can be decoded safely")) from error
    except UnidentifiedImageError as error:
        raise BadPicture(f"got {path}, not a picture that can be read, {_EXPECTED}: convert it first") from error
    except PermissionError as error:
        raise BadPicture(f"got {path}, which may not be read, {_EXPECTED}: change its permissions") from error


def _check_size(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise BadPicture(_too_large(path, f"{width:,} x {height:,} pixels"))
    if min(width, height) < SMALLEST_SIDE:
        raise BadPicture(
            f"got {path} of {width} x {height} pixels, expected at least {SMALLEST_SIDE} on each side: "
            "choose a larger picture"
        )


def _too_large(path: Path, size: str) -> str:
    return f"got {path} with {size}, expected at most {MOST_PIXELS // 1_000_000} million: scale it down first"


def _to_tensor(image: Image.Image) -> Tensor:
    """An upright picture of any mode as (3, H, W) float32 in [0, 1]."""
    if image.mode in (*_SIXTEEN_BIT, "I", "F"):
        return _deep_grey(image).expand(3, -1, -1).clone()
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("RGB"))  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div_(255.0).contiguous()  # (3, H, W)


def _deep_grey(image: Image.Image) -> Tensor:
    """A greyscale picture of more than 8 bits as (1, H, W) float32 in [0, 1]."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = 65_535.0 if image.mode in _SIXTEEN_BIT else max(float(values.max()), 1.0)
    return torch.from_numpy(values / top).clamp_(0.0, 1.0).unsqueeze(0)
