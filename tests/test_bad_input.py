"""Bad input: one clear line, the right exit status, no half-written file, nothing lost."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hyperdreambooth.cli import run
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import save_kohya
from hyperdreambooth.pipeline import HyperDreamBooth

Capture = pytest.CaptureFixture[str]


def error_of(capsys: Capture, *arguments: object, status: int = 2) -> str:
    """Run the program, which must fail with one line on standard error and nothing on standard output."""
    capsys.readouterr()
    got = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (got, out) == (status, "")
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def huge_png(width: int, height: int) -> bytes:
    """A PNG file that says it is so large, and holds next to nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-600])


BAD_PHOTOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no picture": (lambda path: path.write_bytes(b"hello"), "not a picture"),
    "empty": (lambda path: path.write_bytes(b""), "not a picture"),
    "truncated": (truncated, "damaged or cut off"),
    "1 x 1": (lambda path: Image.new("RGB", (1, 1)).save(path, "PNG"), "1 x 1"),
    "30,000 x 30,000": (lambda path: path.write_bytes(huge_png(30_000, 30_000)), "pixels"),
    "a folder": (lambda path: path.mkdir(), "a folder"),
    "not there": (lambda path: None, "does not exist"),
    "below a file": (lambda path: path.parent.joinpath("file").touch(), "cannot be reached"),
}


@pytest.mark.parametrize("kind", BAD_PHOTOS)
def test_bad_photos_are_found_before_the_base_is_opened(kind: str, tmp_path: Path, capsys: Capture) -> None:
    make, words = BAD_PHOTOS[kind]
    photo, output = tmp_path / "photo.jpg", tmp_path / "alice.safetensors"
    make(photo)
    if kind == "below a file":
        photo = tmp_path / "file" / "photo.jpg"
    line = error_of(capsys, "personalize", photo, "-o", output, "--base", tmp_path / "no base")
    assert words in line and photo.name in line
    assert not output.exists()


def test_a_photo_that_may_not_be_read(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system refuses it, which a test that runs as root cannot have otherwise."""
    photo, opened = tmp_path / "photo.jpg", Path.open

    def refuse(path: Path, *how: Any, **more: Any) -> Any:
        if path == photo:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *how, **more)

    Image.new("RGB", (64, 64)).save(photo)
    monkeypatch.setattr(Path, "open", refuse)
    line = error_of(capsys, "personalize", photo, "-o", tmp_path / "alice.safetensors", "--base", tmp_path / "no base")
    assert "photo.jpg, which may not be read" in line and "change its permissions" in line


@pytest.fixture(scope="module")
def sound(base_folder: Path) -> Identity:
    booth = HyperDreamBooth.load(base_folder)
    return Identity(booth.space.start(1), booth.space.info, booth.fingerprint, booth.base.name)


def test_bad_identity_files(sound: Identity, base_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """Each is told apart by name, in every command that opens one; one load of the base per kind is enough."""
    file, data = tmp_path / "alice.safetensors", b""
    sound.save(file)
    data = file.read_bytes()
    nan = data[:-2] + struct.pack("<e", float("nan"))
    kinds: dict[str, bytes] = {
        "truncated": data[:-9],
        "empty": b"",
        "not a safetensors file": b"\xff\xd8 a picture, say, that was given by mistake",
        "pickled": pickle.dumps({"lidb": [1.0]}),
        "not all finite": nan,
    }
    for words, content in kinds.items():
        file.write_bytes(content)
        assert words in error_of(capsys, "inspect", file)
    for other, words in (
        (replace(sound, base="0" * 16, base_name="stable-diffusion-v1-5"), "--base stable-diffusion-v1-5"),
        (replace(sound, space=replace(sound.space, seed=9)), "seed 9, here 0"),
    ):
        other.save(file)
        command = ("generate", file, "--prompt", "a [V] face", "-o", tmp_path / "out", "--base", base_folder)
        assert words in error_of(capsys, *command)
        assert not (tmp_path / "out").exists()


def test_bad_bases(sound: Identity, base_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "alice.safetensors"
    sound.save(file)
    command = ("export", file, "--format", "kohya", "-o", tmp_path / "out.safetensors", "--base")
    assert "no folder" in error_of(capsys, *command, tmp_path / "nowhere")
    assert "has no vae/config.json" in error_of(capsys, *command, tmp_path)
    assert not (tmp_path / "out.safetensors").exists()


def test_outputs_that_cannot_be_written_are_found_first(tmp_path: Path, capsys: Capture) -> None:
    """Before the photograph is looked at, and before anything slow."""
    (tmp_path / "file").write_text("mine")
    below, folder = tmp_path / "file" / "alice.safetensors", tmp_path
    for command in (
        ("personalize", "nobody.jpg", "-o", below),
        ("personalize", "nobody.jpg", "-o", folder),
        ("personalize", "nobody.jpg", "-o", tmp_path / "alice.safetensors", "--sheet", below),
        ("generate", "nobody.safetensors", "--prompt", "a [V] face", "-o", tmp_path / "file"),
        ("export", "nobody.safetensors", "--format", "peft", "-o", tmp_path / "file"),
        ("export", "nobody.safetensors", "--format", "model", "-o", tmp_path / "file"),
        ("import", "nobody.safetensors", "-o", below),
        ("pull", "nobody/here", "-o", below),
        ("mix", "a", "b", "-o", below),
        ("portraits", "-o", tmp_path / "file"),
        ("preoptimize", "portraits:0-1", "-o", tmp_path / "file"),
        ("train", "portraits:0-1", "weights", "-o", tmp_path / "file"),
        ("demo", "-o", tmp_path / "file"),
        ("evaluate", "portraits:0-1", "-o", tmp_path / "file"),
        ("report", "nowhere", "-o", tmp_path / "file"),
        ("convert", "nobody.pt", "-o", below),
        ("study", "make", "nowhere", "--ours", "a", "--other", "b", "-o", tmp_path / "file"),
    ):
        line = error_of(capsys, *command)  # said before anything is read: what the commands name is not there
        assert "choose another output path" in line or "is a folder, expected the name of a file" in line
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("personalize",), "Missing argument"),
        (("personalize", "a.jpg"), "--output"),
        (("personalize", "a.jpg", "-o", "a", "--steps", "-1"), "--steps"),
        (("personalize", "a.jpg", "-o", "a", "--relax", "loha"), "loha"),
        (("paint",), "paint"),
        (("preoptimize", "portraits:9-3", "-o", "weights"), "portraits:FIRST-LAST"),
        (("preoptimize", "nowhere", "-o", "weights"), "check the path"),
        (("personalize", "a.jpg", "-o", "a.jpg"), "as input and as output"),
        (("personalize", "a.jpg", "-o", "x", "--sheet", "./x"), "two outputs"),
        (("mix", "a", "b", "-o", "b"), "as input and as output"),
        (("export", "a", "--format", "kohya", "-o", "a"), "as input and as output"),
        (("import", "a", "-o", "a"), "as input and as output"),
        (("import", "a", "-o", "b", "--rank", "0"), "--rank"),
        (("import", "nobody.safetensors", "-o", "b"), "check the path"),
        (("push", "nobody.safetensors", "ann/alice"), "check the path"),
        (("personalize", "a.jpg", "-o", "a", "--seed", str(2**63)), "--seed"),
        (("convert", "a.pt", "-o", "a.pt"), "as input and as output"),
        (("convert", "a.pt"), "--output"),
        (("personalize", "a.jpg", "-o", "a", "--method", "magic"), "textual-inversion"),
        (("personalize", "a.jpg", "-o", "a", "--method", "dreambooth", "--rank", "2"), "for hyperdreambooth alone"),
        (("personalize", "a.jpg", "-o", "a", "--method", "dreambooth", "--steps", "0"), "1 or more"),
        (("personalize", "a.jpg", "-o", "a", "--method", "e4t", "--dtype", "int8"), "fp16 or fp32"),
        (("personalize", "a.jpg", "-o", "a", "--method", "no-hyper", "--steps", "0"), "1 or more"),
        (("evaluate", "-o", "run", "--methods", "only-hyper@40"), "hyperdreambooth@40"),
        (("evaluate", "-o", "run", "--methods", "magic"), "expected one of hyperdreambooth"),
        (("evaluate", "-o", "run", "--set", "huge"), "quick, standard, paper"),
        (("evaluate", "-o", "run", "--share", "2/2"), "expected 0 to 1"),
        (("evaluate", "-o", "run", "--share", "half"), "INDEX/COUNT"),
        (("evaluate", "nowhere", "-o", "run", "--methods", "no-hyper"), "check the path"),
        (("evaluate", "nowhere", "-o", "run", "--only", "names", "--methods", "no-hyper"), "a file of names"),
        (("evaluate", "portraits:0-1", "-o", "run", "--methods", "only-hyper"), "needs a hypernetwork"),
        (("report", "nowhere"), "holds no run"),
        (("portraits", "--seed", "4294967295", "--count", "2", "-o", "faces"), "4294967295"),
    ],
)
def test_wrong_use(
    arguments: tuple[str, ...],
    words: str,
    capsys: Capture,
    tmp_path: Path,
    base_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hyperdreambooth.base.loading.BASE", base_folder)
    assert words in error_of(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_strength_that_is_no_number(sound: Identity, base_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    sound.save(tmp_path / "alice.safetensors")
    command = ("generate", tmp_path / "alice.safetensors", "--prompt", "a [V] face", "-o", tmp_path / "out")
    assert "finite" in error_of(capsys, *command, "--base", base_folder, "--strength", "nan")
    assert not (tmp_path / "out").exists()


def test_an_unknown_word_is_named_and_the_work_goes_on(
    sound: Identity, base_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    sound.save(tmp_path / "alice.safetensors")
    command = ["generate", tmp_path / "alice.safetensors", "--prompt", "a [V] face on a zebra", "-o", tmp_path / "out"]
    assert run([*map(str, command), "--base", str(base_folder), "--steps", "1"]) == 0
    assert 'note: the base "tiny" never saw the word "on", "zebra"' in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.fixture(scope="module")
def lora_file(sound: Identity, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's LoRA in kohya's layout."""
    path = tmp_path_factory.mktemp("loras") / "alice.safetensors"
    save_kohya(path, HyperDreamBooth.load(base_folder).space, sound.weights)
    return path


# What writes in ways of its own, and its words.
WRITERS = {
    "personalize": "personalize {photo} -o {out} --base {base} --steps 1 --noises 1",
    "sheet": "personalize {photo} -o {beside} --sheet {out} --base {base} --steps 1 --noises 1",
    "generate": "generate {alice} --prompt [V] -o {out} --base {base} --steps 1",
    "kohya": "export {alice} --format kohya -o {out} --base {base}",
    "peft": "export {alice} --format peft -o {out} --base {base}",
    "diffusers": "export {alice} --format diffusers -o {out} --base {base}",
    "mix": "mix {alice} {alice} -o {out} --base {base}",
    "model": "export {alice} --format model -o {out} --base {base}",
    "import": "import {lora} -o {out} --base {base}",
    "portraits": "portraits -o {out} --count 1",
    "preoptimize": "preoptimize portraits:0-0 -o {out} --base {base} --steps 1",
    "evaluate": "evaluate portraits:0-0 -o {out} --base {base} --methods no-hyper@1",
}
FOLDERS = ("generate", "peft", "model", "portraits", "preoptimize", "evaluate")  # whose output is a folder


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_fails_the_work_and_loses_nothing(
    writer: str, sound: Identity, base_folder: Path, portrait_file: Path, lora_file: Path, tmp_path: Path
) -> None:
    """In a process that may not write large files: the former file stays, and no part of a new one.

    Of two files, the first fits.
    """
    limit = 60_000 if writer == "sheet" else 64  # bytes
    alice, output, beside = (tmp_path / name for name in ("alice.safetensors", "out", "beside.safetensors"))
    sound.save(alice)
    former = output / "former.txt" if writer in FOLDERS else output
    former.parent.mkdir(exist_ok=True)
    former.write_text("what was there")
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY)); "
        "from hyperdreambooth.cli import main; main()"
    )
    names = {"photo": portrait_file, "alice": alice, "out": output, "beside": beside, "base": base_folder}
    command = WRITERS[writer].format(**names, lora=lora_file).split()
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("note:")]
    assert line.startswith("error: no room to write") and str(output) in line
    assert former.read_text() == "what was there"
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == sorted([alice, former, *([beside] if writer == "sheet" else [])])


def test_what_nobody_foresaw_is_one_line_too(
    sound: Identity, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("torch wanted\nmore")

    sound.save(tmp_path / "alice.safetensors")
    monkeypatch.setattr(Identity, "open", fail)
    assert "MemoryError: torch wanted more" in error_of(capsys, "inspect", tmp_path / "alice.safetensors", status=1)
