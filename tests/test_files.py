"""Files: nothing left behind by a check, nothing half-written by a failure, damage told apart by name."""

import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from hyperdreambooth.errors import BadFile, NotWritable, UserError, WorkError
from hyperdreambooth.files import _DTYPES, check_writable, load_tensors, locked, save_tensors, write_atomically

FULL_DISK = """
import resource, sys, torch
from hyperdreambooth.errors import DiskFull
from hyperdreambooth.files import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_tensors(sys.argv[1], {"x": torch.zeros(500), "y": torch.zeros(10_000), "z": torch.zeros(500)})
except DiskFull as error:
    print("DiskFull", error)
"""

FULL_DISK_FOLDER = """
import resource, sys, torch
from safetensors.torch import save_file
from hyperdreambooth.errors import DiskFull
from hyperdreambooth.files import write_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_folder(sys.argv[1], lambda part: save_file({"x": torch.zeros(10_000)}, part / "x.safetensors"))
except DiskFull as error:
    print("DiskFull", error)
"""


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.safetensors")
    check_writable(tmp_path / "new" / "folders" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["", "taken/a.bin", "x" * 300, "loop/a", "/dev/null", "/proc/a", "zero\0byte"])
def test_check_writable_refuses_before_work(tmp_path: Path, path: str) -> None:
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(NotWritable) as caught:
        check_writable(tmp_path / path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "taken").read_text() == "a file where a folder is wanted"


def test_write_makes_folders_and_keeps_suffix(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    suffixes = []
    write_atomically(path, lambda part: (suffixes.append(part.suffix), part.write_bytes(b"whole")))
    assert suffixes == [".png"] and path.read_bytes() == b"whole" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [RuntimeError("stopped"), OSError(5, "Input/output error")])
def test_failed_write_keeps_the_former_file(tmp_path: Path, failure: Exception) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"former")

    def write(part: Path) -> None:
        part.write_bytes(b"hal")
        raise failure

    with pytest.raises(WorkError if isinstance(failure, OSError) else RuntimeError):
        write_atomically(path, write)
    assert path.read_bytes() == b"former" and list(tmp_path.iterdir()) == [path]


def test_full_disk_leaves_no_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.ones(2)})
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("DiskFull no room to write") and done.stdout.count("\n") == 1
    assert load_tensors(path)[0]["x"].tolist() == [1.0, 1.0] and list(tmp_path.iterdir()) == [path]


def test_full_disk_is_told_from_the_words_of_the_library_too(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    done = subprocess.run([sys.executable, "-c", FULL_DISK_FOLDER, folder], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"DiskFull no room to write {folder}") and done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_tensors_come_back_with_dtype_views_and_metadata(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"row": whole[1], "turned": whole.T, "half": whole.half(), "grad": whole.clone().requires_grad_()}
    tensors["none of numpy's"] = torch.from_numpy(np.concatenate([np.zeros(0, np.int64)] * 2))  # strides of its own
    save_tensors(tmp_path / "a.safetensors", tensors, {"who": "nobody"})
    loaded, metadata = load_tensors(tmp_path / "a.safetensors")
    assert metadata == {"who": "nobody"} and loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor.detach())


def test_every_dtype_and_shape_is_written_as_the_library_does(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    dtypes = [getattr(torch, name.removeprefix("torch.")) for name in _DTYPES]
    tensors = {
        f"{letter}/{dtype}": torch.rand(3, 5, generator=random).mul(9).to(dtype) for dtype in dtypes for letter in "zbä"
    }
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "turned": torch.rand(4, 6, generator=random).T}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    for words in (None, {"who": "nobödy\n"}):
        save_tensors(tmp_path / "a.safetensors", tensors, words)
        assert (tmp_path / "a.safetensors").read_bytes() == save(whole, words)
    loaded, _ = load_tensors(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].tolist() == tensor.tolist()
    with pytest.raises(ValueError, match=r"got torch.complex64 for 'x', expected one of torch.bool, .*: convert it"):
        save_tensors(tmp_path / "b.safetensors", {"x": torch.zeros(2, dtype=torch.complex64)})
    assert not (tmp_path / "b.safetensors").exists()


def test_tensors_are_saved_without_a_copy_of_them_all(tmp_path: Path) -> None:
    tensors = {str(number): torch.zeros(2**22) for number in range(4)}  # 64 MB
    tracemalloc.start()
    try:
        save_tensors(tmp_path / "a.safetensors", tensors)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20 and (tmp_path / "a.safetensors").stat().st_size > 2**26


def test_a_folder_made_for_a_lock_goes_with_it_unless_something_else_came(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "a.lock"
    for kept in (False, True):
        with locked(lock, UserError("taken")):
            assert lock.exists()
            with pytest.raises(UserError, match="taken"), locked(lock, UserError("taken")):
                pass
            if kept:
                (lock.parent / "result").touch()
        assert not lock.exists() and lock.parent.exists() is kept
    (lock.parent / "result").unlink()
    with locked(lock, UserError("taken")):
        pass
    assert lock.parent.exists()  # it was there before


def test_damaged_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.ones(100)})
    whole = path.read_bytes()
    cases = {
        "truncated": whole[: len(whole) // 2],
        "pickled": pickle.dumps({"x": 1}),
        "empty": b"",
        "not a safetensors": b"\xff\xd8\xff\xe0 a picture",
    }
    for words, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(BadFile, match=words):
            load_tensors(path)
    torch.save({"x": torch.ones(2)}, path)
    with pytest.raises(BadFile, match="pickled"):
        load_tensors(path)
    for absent in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(BadFile, match="cannot read"):
            load_tensors(absent)


def test_the_same_tensors_and_words_are_the_same_bytes(tmp_path: Path) -> None:
    words = {f"word {number}": "é" * number for number in range(12)}
    for name in ("a", "b"):
        save_tensors(tmp_path / name, {"x": torch.arange(5), "y": torch.ones(3, dtype=torch.float16)}, words)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tensors, about = load_tensors(tmp_path / "a")
    assert about == words and torch.equal(tensors["x"], torch.arange(5)) and tensors["y"].tolist() == [1, 1, 1]
    plain = load_file(tmp_path / "a")  # the library's own reader
    assert torch.equal(plain["x"], tensors["x"]) and torch.equal(plain["y"], tensors["y"])
