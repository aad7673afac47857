"""Every kind of picture file becomes the same clean tensor; everything else is refused by name."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyperdreambooth.errors import BadPicture
from hyperdreambooth.faces import read_picture, to_picture
from hyperdreambooth.faces.reading import LARGEST_SIDE

WIDTH, HEIGHT = 40, 24


def gradient() -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: red rises to the right, green downwards, blue is constant."""
    red, green = np.meshgrid(np.linspace(0, 250, WIDTH), np.linspace(0, 200, HEIGHT))
    return np.stack([red, green, np.full_like(red, 60)], axis=-1).round().astype(np.uint8)


def picture() -> Image.Image:
    return Image.fromarray(gradient())


def expected() -> torch.Tensor:
    return torch.from_numpy(gradient()).permute(2, 0, 1) / 255


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("ending", "options", "tolerance"),
    [
        ("png", {}, 0.0),
        ("bmp", {}, 0.0),
        ("tiff", {}, 0.0),
        ("ppm", {}, 0.0),
        ("webp", {"lossless": True}, 0.0),
        ("webp", {"quality": 95}, 0.06),
        ("jpg", {"quality": 95, "subsampling": 0}, 0.03),
    ],
)
def test_each_format_gives_the_same_numbers(
    tmp_path: Path, ending: str, options: dict[str, object], tolerance: float
) -> None:
    path = tmp_path / f"picture.{ending}"
    picture().save(path, **options)
    result = read_picture(path)
    assert result.shape == (3, HEIGHT, WIDTH)
    assert result.dtype == torch.float32
    assert (result - expected()).abs().max() <= tolerance + 1e-6


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    # how a camera held in each of the eight ways stores the upright picture
    stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation](gradient())
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert torch.equal(read_picture(path), expected())
    grey = Image.fromarray(np.ascontiguousarray(stored)[..., 0])  # which Pillow would map from a TIFF
    grey.save(path, exif=exif)
    assert torch.equal(read_picture(path), expected()[:1].expand(3, -1, -1))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[..., 0] = 255  # red
    pixels[:8, :, 3] = 255  # opaque above, clear below
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    result = read_picture(tmp_path / "alpha.png")
    assert result[:, 0, 0].tolist() == [1, 0, 0]
    assert result[:, 15, 0].tolist() == [1, 1, 1]


def test_greyscale_and_its_alpha(tmp_path: Path) -> None:
    grey = Image.fromarray(gradient()[..., 0])
    grey.save(tmp_path / "grey.png")
    assert torch.equal(read_picture(tmp_path / "grey.png"), expected()[:1].expand(3, -1, -1))
    with_alpha = Image.merge("LA", [grey, Image.new("L", grey.size, 0)])
    with_alpha.save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").min() == 1


def test_palette_and_its_transparent_colour(tmp_path: Path) -> None:
    flat = Image.new("P", (16, 16), 1)
    flat.putpalette([0, 0, 0, 51, 102, 204])
    flat.save(tmp_path / "palette.png")
    assert torch.allclose(read_picture(tmp_path / "palette.png")[:, 0, 0], torch.tensor([0.2, 0.4, 0.8]))
    flat.save(tmp_path / "clear.gif", transparency=1)
    assert read_picture(tmp_path / "clear.gif").min() == 1


def test_cmyk_is_not_inverted(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (255, 0, 0)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    red, green, blue = read_picture(tmp_path / "cmyk.jpg")[:, 16, 16].tolist()
    assert red > 0.9
    assert max(green, blue) < 0.1


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_are_scaled(tmp_path: Path, ending: str) -> None:
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"deep.{ending}")
    result = read_picture(tmp_path / f"deep.{ending}")
    assert torch.allclose(result[1], torch.from_numpy(deep.astype(np.float32)) / 65535, atol=1e-6)


def test_floating_point_is_scaled(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "float.tiff")
    result = read_picture(tmp_path / "float.tiff")
    assert torch.isfinite(result).all()
    assert torch.allclose(result[0, 1:], torch.from_numpy(values)[1:], atol=1e-6)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_large_pictures_come_reduced(tmp_path: Path, ending: str) -> None:
    picture().resize((LARGEST_SIDE * 2, 600)).save(tmp_path / f"large.{ending}")
    assert read_picture(tmp_path / f"large.{ending}").shape == (3, 300, LARGEST_SIDE)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x24ftypheic" + bytes(24))
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (
        ("text.jpg", "not a picture"),
        ("empty.png", "not a picture"),
        ("phone.heic", "a HEIC photograph.*export it as JPEG"),
        (".", "a folder"),
        ("missing.png", "does not exist"),
        ("text.jpg/inside.png", "cannot be reached"),
        ("nul\0.png", "cannot be reached"),
        ("pipe.png", "not a regular file"),
    ):
        with pytest.raises(BadPicture, match=reason) as caught:
            read_picture(tmp_path / name)
        assert "expected" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff", "bmp"])
def test_truncated_files_are_refused_at_every_length(tmp_path: Path, ending: str) -> None:
    noise = np.random.RandomState(0).randint(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{ending}")
    whole = (tmp_path / f"whole.{ending}").read_bytes()
    cut = tmp_path / f"cut.{ending}"
    for share in (0.02, 0.2, 0.5, 0.8):
        cut.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BadPicture, match="expected"):
            read_picture(cut)


def test_damaged_bytes_never_leak_another_error(tmp_path: Path) -> None:
    random = np.random.RandomState(1)
    for ending in ("jpg", "png", "webp", "tiff", "gif"):
        picture().save(tmp_path / f"whole.{ending}")
        whole = np.frombuffer((tmp_path / f"whole.{ending}").read_bytes(), dtype=np.uint8)
        for _ in range(20):
            damaged = whole.copy()
            damaged[random.randint(len(damaged), size=8)] = random.randint(256, size=8)
            path = tmp_path / f"damaged.{ending}"
            path.write_bytes(damaged.tobytes())
            try:
                read_picture(path)
            except BadPicture as error:
                assert "\n" not in str(error)


def test_one_pixel_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(BadPicture, match="1 x 1 pixels, expected at least 16"):
        read_picture(tmp_path / "dot.png")


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 9_500), (9_300, 9_000)])
def test_giants_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "giant.png"
    path.write_bytes(header_only_png(*size))  # decoding it would fail as damaged, and 30,000 x 30,000 take 2.7 GB
    with pytest.raises(BadPicture, match="expected at most 80 million: scale it down"):
        read_picture(path)
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16"])
def test_an_image_in_memory_is_what_its_file_is(tmp_path: Path, mode: str) -> None:
    """Upright too, and the image that is given stays as it is."""
    deep = Image.fromarray(gradient()[..., 0].astype(np.uint16) * 257)
    image = deep if mode == "I;16" else picture().convert(mode)
    path = tmp_path / "picture.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(path, exif=exif)
    image.getexif()[0x0112] = 6
    got = to_picture(image)
    assert got.shape == (3, WIDTH, HEIGHT) and image.size == (WIDTH, HEIGHT)
    assert torch.equal(got, read_picture(path)) and 0.3 < got.mean() < 0.8


def test_transparent_is_white_and_huge_is_reduced_in_memory() -> None:
    assert to_picture(Image.new("RGBA", (20, 20), (0, 0, 0, 0))).min() == 1
    assert to_picture(Image.new("L", (3 * LARGEST_SIDE, 48), 51)).shape == (3, 16, LARGEST_SIDE)
    assert to_picture(Image.new("I;16", (3 * LARGEST_SIDE, 48), 13_107)).unique().tolist() == pytest.approx([0.2])


def test_tensors_of_bytes_and_of_shares_are_the_same_picture() -> None:
    levels = torch.from_numpy(gradient()).permute(2, 0, 1)
    assert torch.equal(to_picture(levels), expected())
    assert torch.equal(to_picture(expected().double()), expected())


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Image.new("RGB", (1, 1)), "1 x 1"),
        (torch.zeros(3, 1, 1), "1 x 1"),
        (torch.zeros(3, 1, 1).expand(3, 10_000, 10_000), "10,000 x 10,000"),
        (torch.zeros(1, 3, 20, 20), "3, H, W"),
        (torch.zeros(3, 20, 20, dtype=torch.int64), "int64"),
        (torch.full((3, 20, 20), 200.0), "from 200 to 200"),
        (torch.full((3, 20, 20), -0.5), "from -0.5"),
        (torch.full((3, 20, 20), torch.nan), "nan"),
        (np.zeros((20, 20, 3)), "ndarray"),
    ],
)
def test_what_is_no_picture_in_memory_is_refused(bad: torch.Tensor, words: str) -> None:
    with pytest.raises(BadPicture, match=words):
        to_picture(bad)
