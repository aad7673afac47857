"""Files on disk: writable or not, written whole or not at all, tensors in safetensors and never in pickle."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperdreambooth.errors import BadFile, DiskFull, HyperDreamBoothError, NotWritable, WorkError

if TYPE_CHECKING:  # torch takes seconds to import: only the functions on tensors pay for it
    from torch import Tensor

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_DTYPES = {  # safetensors' names, in the order from which the library puts the last first
    "torch.bool": "BOOL",
    "torch.uint8": "U8",
    "torch.int8": "I8",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.int16": "I16",
    "torch.uint16": "U16",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int32": "I32",
    "torch.uint32": "U32",
    "torch.float32": "F32",
    "torch.float64": "F64",
    "torch.int64": "I64",
    "torch.uint64": "U64",
}


def check_writable(path: str | Path) -> None:
    """Raise `NotWritable` if a file could not be written at `path`; leaves nothing behind, creates no folder."""
    path = Path(path)
    try:
        target = path.resolve()
        if target.is_dir():
            raise NotWritable(f"{path} is a folder, expected the name of a file to write: give a file name inside it")
        if target.exists() and not target.is_file():
            raise NotWritable(f"{path} is a device or a pipe, expected a regular file: choose another output path")
        folder = target.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise NotWritable(f"cannot write {path}: {folder} is a file, expected a folder: choose another output path")
        target.with_name(target.name).exists()  # a name too long shows here
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: a zero byte
        raise NotWritable(f"cannot write {path} ({_reason(error)}): choose another output path") from error


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path` (same suffix), then move it into place in one step.

    `path` holds its former content until the new one is complete; missing folders are made. On any failure the
    temporary file is removed. Raises `DiskFull` when room ran out, `WorkError` for any other failure of the disk.
    """
    target = Path(path).resolve()
    part = target.with_name(f".{secrets.token_hex(6)}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with suppress(OSError):  # not there, or on a disk that fails: the error above is the one to tell
            part.unlink()


def write_bytes(path: str | Path, data: bytes) -> int:
    """Write a file whole, by `write_atomically`; returns its bytes."""
    write_atomically(path, lambda part: part.write_bytes(data))
    return len(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole, in UTF-8, by `write_atomically`."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def append(path: str | Path, data: bytes) -> None:
    """Put bytes at the end of a file, all of them on the disk when this returns, or none. Raises as the others do."""
    file = Path(path)
    before = file.stat().st_size if file.exists() else 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        if file.exists():
            os.truncate(file, before)
        raise _write_error(path, error) from error


@contextmanager
def locked(path: str | Path, otherwise: HyperDreamBoothError, seconds: float = 0.0) -> Iterator[None]:
    """Be the only process that is in here with this lock file, which is there as long; the system lets go of the dead.

    A folder that was made for it goes with it, if nothing else came into it.

    Raises `otherwise` where another process still is after so many seconds.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    made = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise otherwise from error
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever waits for it finds it gone, and makes another
        lock.release()
        if made:
            with suppress(OSError):  # it is in use
                path.parent.rmdir()


def write_folder(folder: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder beside `folder`, then move its files into place, each in one step.

    Files of `folder` under other names stay. Raises as `write_atomically` does, and then `folder` is as it was.
    """
    from safetensors import SafetensorError

    target = Path(folder).resolve()
    part = target.with_name(f".{secrets.token_hex(6)}.part")
    try:
        part.mkdir(parents=True)
        try:
            write(part)
        except SafetensorError as error:  # the library's own words for what the disk said, its number among them
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else 0, str(error)) from error
        except WorkError as error:  # of a file in the temporary folder, whose name means nothing to anybody
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from error
            raise
        for file in sorted(path for path in part.rglob("*") if path.is_file()):
            final = target / file.relative_to(part)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, final)
    except OSError as error:
        raise _write_error(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors of any device, with text metadata, as one safetensors file, atomically.

    The same tensors and words are the same bytes: those of the library, but for its metadata, whose order differs from
    call to call. Each tensor goes into the file from where it is: no second copy of them all is held.
    """
    order = sorted(tensors, key=lambda name: (-_rank(name, tensors[name]), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        dtype = _DTYPES[str(tensor.dtype)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                file.write(_bytes_of(tensors[name]))

    write_atomically(path, write)


def _rank(name: str, tensor: Tensor) -> int:
    """Where tensors of its dtype stand in a file, from behind. Raises ValueError for one that has no name there."""
    if str(tensor.dtype) not in _DTYPES:
        raise ValueError(f"got {tensor.dtype} for {name!r}, expected one of {', '.join(_DTYPES)}: convert it first")
    return list(_DTYPES).index(str(tensor.dtype))


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's numbers as they stand in a file, without a copy where it is on the CPU and in order."""
    import torch

    if not tensor.numel():  # whose strides may be anything
        return memoryview(b"")
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors on the CPU in their saved dtype, and its text metadata.

    Raises `BadFile` for a file that is absent, a folder, unreadable, truncated, pickled or foreign.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def load_row(path: str | Path, name: str, row: int) -> Tensor:
    """One row of a named tensor of a safetensors file, of which nothing else is read. Raises as `load_tensors`."""
    with _opened(path) as file:
        found: Tensor = file.get_slice(name)[row]
        return found


def load_metadata(path: str | Path) -> dict[str, str]:
    """A safetensors file's text metadata alone, whatever its size. Raises as `load_tensors`."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def load_header(path: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype, as safetensors spells it ("F16"), and the shape of each tensor of a file. Raises as `load_tensors`."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (str(one.get_dtype()), tuple(one.get_shape())) for name, one in slices.items()}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """A safetensors file to read from; whatever is wrong with it is a `BadFile`."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
        with safe_open(path, framework="pt", device="cpu") as opened:
            yield opened
    except OSError as error:
        raise BadFile(f"cannot read {path} ({_reason(error)}), expected a safetensors file: check the path") from error
    except SafetensorError as error:
        raise BadFile(f"{path} is {_kind(head)}, expected a whole safetensors file: make or copy it again") from error


def _kind(head: bytes) -> str:
    """What a file that is not sound safetensors seems to be, from its first 8 bytes."""
    if not head:
        return "empty"
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "a pickled or zipped file (never opened here: it could run code)"
    if len(head) == 8 and int.from_bytes(head, "little") < 1 << 27:  # the length of a plausible header
        return "truncated or damaged"
    return "not a safetensors file"


def _write_error(path: str | Path, error: OSError) -> WorkError:
    """The error to raise when writing `path` failed with `error`."""
    if error.errno in _NO_ROOM:
        return DiskFull(f"no room to write {path} ({_reason(error)}): free some space and run again")
    return WorkError(f"could not write {path} ({_reason(error)}): check the disk and run again")


def _reason(error: Exception) -> str:
    """The system's words for an error, without the path and the number that `str` puts around them."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
