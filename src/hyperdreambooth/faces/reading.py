"""Any picture, in a file or in memory, to a clean RGB tensor, or one clear line that says why not."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hyperdreambooth.errors import BadPicture

SMALLEST_SIDE = 16
"""Pictures with a side below this, in pixels, show no face."""

LARGEST_SIDE = 4096
"""Pictures with a side above this, in pixels, are reduced while they are read: a face in a quarter of it still fills a
base of 1,024 pixels."""

MOST_PIXELS = 80_000_000
"""Pictures of more pixels are refused from their header alone; below Pillow's own limit, which stays on."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
"""What is opened at all: still pictures that Pillow decodes by itself, without starting another program."""

_EXPECTED = "expected a photograph as JPEG, PNG, WebP, BMP or TIFF"
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of its pictures
_ORIENTATION = 0x0112  # EXIF's tag; 5 to 8 lie on their side
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
    with _refusing_damage(path), _bytes(path) as file, _open(path, file) as image:
        _check_size(path, *image.size)
        return _reduced(image)


def read_encoded(data: bytes, name: str) -> Tensor:
    """A picture from the bytes of a file, as `read_picture` gives it; `name` says which, in errors.

    Raises:
        BadPicture: as `read_picture`.
    """
    with _refusing_damage(name), BytesIO(data) as file, _open(name, file) as image:
        _check_size(name, *image.size)
        return _reduced(image)


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an upright picture file in pixels, of which `read_picture` may give fewer.

    Raises:
        BadPicture: as `read_picture`, where the header shows it.
    """
    path = Path(path)
    _check_is_file(path)
    with _refusing_damage(path), _bytes(path) as file, _open(path, file) as image:
        width, height = image.size
        lying = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        return (height, width) if lying else (width, height)


def to_picture(image: Image.Image | Tensor) -> Tensor:
    """A picture in memory as `read_picture` gives one from a file; what is given stays as it is.

    Args:
        image: a PIL image of any mode, treated as a file's is; or a tensor (3, H, W), float in [0, 1] or uint8 in
            0 to 255, which keeps its size.

    Returns:
        (3, H, W) float32 in [0, 1] on the CPU.

    Raises:
        BadPicture: anything else, too small or too large, or damaged.
    """
    if isinstance(image, Image.Image):
        with _refusing_damage("an image"):
            _check_size("an image", *image.size)
            return _decoded(image)
    if not isinstance(image, Tensor):
        raise BadPicture(f"got a {type(image).__name__}, expected a file, a PIL image or a tensor (3, H, W)")
    return _checked(image)


def _reduced(image: Image.Image) -> Tensor:
    """A picture whose header alone was read."""
    image.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))  # lets a large JPEG be decoded at 1/2, 1/4 or 1/8
    return _decoded(image)


def _decoded(image: Image.Image) -> Tensor:
    """An image of any mode, upright and at most `LARGEST_SIDE` long, as (3, H, W)."""
    upright = ImageOps.exif_transpose(image)  # a copy in any case
    upright.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return _to_tensor(upright)


def _checked(picture: Tensor) -> Tensor:
    """A tensor (3, H, W) of either kind as float32 in [0, 1]."""
    shape = tuple(picture.shape)
    if len(shape) != 3 or shape[0] != 3 or not (picture.is_floating_point() or picture.dtype == torch.uint8):
        raise BadPicture(f"got a {picture.dtype} tensor of shape {shape}, expected (3, H, W), float or uint8")
    _check_size("a tensor", shape[2], shape[1])
    values = picture.detach().to("cpu", torch.float32)
    if picture.dtype == torch.uint8:
        return values / 255
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # not a number is neither
        raise BadPicture(f"got a tensor of numbers from {low:g} to {high:g}, expected [0, 1]: rescale or clamp it")
    return values


@contextmanager
def _refusing_damage(name: str | Path) -> Iterator[None]:
    """On damaged bytes a decoder may raise anything: inside, it comes out as BadPicture."""
    try:
        yield
    except BadPicture:
        raise
    except Exception as error:
        raise BadPicture(f"got {name}, damaged or cut off ({error}), {_EXPECTED}: save or copy it again") from error


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


def _bytes(path: Path) -> BinaryIO:
    """The file, opened here: Pillow maps a TIFF that it opens itself, and a turned one comes out garbled."""
    try:
        return path.open("rb")
    except PermissionError as error:
        raise BadPicture(f"got {path}, which may not be read, {_EXPECTED}: change its permissions") from error


def _open(path: str | Path, file: BinaryIO) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture(_too_large(path, "more pixels than can be decoded safely")) from error
    except UnidentifiedImageError as error:
        kind, remedy = ("not a picture that can be read", "convert it first")
        if _is_heic(file):
            kind, remedy = "a HEIC photograph, as phones take them", "share or export it as JPEG"
        raise BadPicture(f"got {path}, {kind}, {_EXPECTED}: {remedy}") from error


def _is_heic(file: BinaryIO) -> bool:
    """Whether a file's first box says so (ISO 23008-12): its decoders come under licences that the core keeps out."""
    file.seek(0)
    head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC


def _check_size(name: str | Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise BadPicture(_too_large(name, f"{width:,} x {height:,} pixels"))
    if min(width, height) < SMALLEST_SIDE:
        raise BadPicture(
            f"got {name} of {width} x {height} pixels, expected at least {SMALLEST_SIDE} on each side: "
            "choose a larger picture"
        )


def _too_large(name: str | Path, size: str) -> str:
    return f"got {name} with {size}, expected at most {MOST_PIXELS // 1_000_000} million: scale it down first"


def _to_tensor(image: Image.Image) -> Tensor:
    """An upright picture of any mode as (3, H, W) float32 in [0, 1]."""
    if image.mode in (*_SIXTEEN_BIT, "I", "F"):
        return _deep_grey(image).expand(3, -1, -1).clone()
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    bands = [np.asarray(band) for band in image.convert("RGB").split()]  # faster than to reorder (H, W, 3)
    return torch.from_numpy(np.stack(bands)).to(torch.float32).div_(255.0)  # (3, H, W)


def _deep_grey(image: Image.Image) -> Tensor:
    """A greyscale picture of more than 8 bits as (1, H, W) float32 in [0, 1]."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = 65_535.0 if image.mode in _SIXTEEN_BIT else max(float(values.max()), 1.0)
    return torch.from_numpy(values / top).clamp_(0.0, 1.0).unsqueeze(0)
