"""Bases by hub id: from the hub client's cache, from a small hub on this machine, and without either."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from hyperdreambooth.base import hub
from hyperdreambooth.base.hub import fetch, is_hub_id
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import BadBase, DiskFull, WorkError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds the tiny base as org/tiny, on main and as v1."""
    home = tmp_path / "cache"
    repository = home / "models--org--tiny"
    shutil.copytree(base_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    for revision in ("main", "v1"):
        (repository / "refs" / revision).write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    return home


@pytest.mark.parametrize("name", ["org/tiny", "org/tiny@v1", f"org/tiny@{COMMIT}"])
def test_a_cached_base_opens_without_a_connection(name: str, cache: Path, tiny_base: Base) -> None:
    base = load_base(name, device="cpu")
    assert base.fingerprint == tiny_base.fingerprint


def test_a_base_without_a_card_has_the_name_that_opens_it(cache: Path) -> None:
    (cache / "models--org--tiny" / "snapshots" / COMMIT / "hyperdreambooth.json").unlink()
    assert load_base("org/tiny@v1", device="cpu").name == "org/tiny@v1"


@pytest.mark.parametrize("name", ["org/absent", "org/tiny@v2"])
def test_a_base_that_is_not_cached_and_no_connection(name: str, cache: Path) -> None:
    with pytest.raises(BadBase, match="not in the hub's cache, and the hub cannot be reached") as caught:
        load_base(name)
    assert "\n" not in str(caught.value)


def test_which_names_can_be_of_the_hub() -> None:
    assert all(map(is_hub_id, ("org/name", "org/name@main", "a-b/c.d_e@refs/pr/1")))
    assert not any(map(is_hub_id, ("name", "/org/name", "a/b/c", "../name", "./x", "org/name@", "a b/c")))


def test_a_full_disk_and_a_broken_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(number: int) -> None:
        def fail(*_: object, **__: object) -> str:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(hub, "snapshot_download", fail)

    failing(errno.ENOSPC)
    with pytest.raises(DiskFull, match="no room to fetch org/name"):
        fetch("org/name")
    failing(errno.ECONNRESET)
    with pytest.raises(WorkError, match="run again"):
        fetch("org/name")


class _Hub(BaseHTTPRequestHandler):
    """As much of a hub as serves one public repository, org/tiny."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path, data, headers = self.path.partition("?")[0], b"", {}
        if path.startswith("/api/models/org/tiny/revision/") or path == "/api/models/org/tiny":
            files = [str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()]
            about = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            data = json.dumps(about).encode()
            headers["Content-Type"] = "application/json"
        elif path.startswith("/api/models/org/tiny/tree/"):
            sizes = {file: file.stat().st_size for file in self.folder.rglob("*") if file.is_file()}
            listed = [
                {"type": "file", "path": str(file.relative_to(self.folder)), "size": size, "oid": COMMIT}
                for file, size in sizes.items()
            ]
            data = json.dumps(listed).encode()
            headers["Content-Type"] = "application/json"
        elif path.startswith("/org/tiny/resolve/"):
            name = path.split("/", 5)[5]
            data = (self.folder / name).read_bytes()
            headers |= {"X-Repo-Commit": COMMIT, "ETag": f'"{name.replace("/", "-")}"'}
            if body:
                self.asked.append(name)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(base_folder: Path, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with the tiny base and files that nobody here needs, and the names that were fetched."""
    folder = Path(shutil.copytree(base_folder, tmp_path / "repository"))
    for name in (
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "v1.ckpt",
        "a.png",
    ):
        (folder / name).write_bytes(b"large")
    asked = list[str]()
    handler = type("Hub", (_Hub,), {"folder": folder, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def opened(name: str, address: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Open a base in a process of its own, for which the hub is at an address."""
    code = (
        "import sys; from hyperdreambooth.base.loading import load_base; "
        "from hyperdreambooth.errors import HyperDreamBoothError\n"
        "try: print(load_base(sys.argv[1], device='cpu').fingerprint)\n"
        "except HyperDreamBoothError as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    command = [sys.executable, "-c", code, name]
    return subprocess.run(command, env=kept | settings, capture_output=True, text=True, timeout=240)


def test_a_base_is_fetched_once_and_no_more_of_it_than_needed(
    served: tuple[str, list[str]], tiny_base: Base, tmp_path: Path
) -> None:
    address, asked = served
    first = opened("org/tiny", address, tmp_path / "home")
    assert first.stdout.strip() == tiny_base.fingerprint, first.stderr
    assert "unet/diffusion_pytorch_model.safetensors" in asked and "tokenizer/tokenizer.json" in asked
    assert not [name for name in asked if name.endswith((".bin", ".ckpt", ".png")) or "fp16" in name]
    fetched = len(asked)
    again = opened("org/tiny", address, tmp_path / "home")
    assert again.stdout == first.stdout and len(asked) == fetched
    gone = opened("org/tiny", "http://127.0.0.1:9", tmp_path / "home")  # a hub that is down: the cache is enough
    assert gone.stdout == first.stdout, gone.stderr


def test_a_name_that_the_hub_has_not(served: tuple[str, list[str]], tmp_path: Path) -> None:
    done = opened("org/other", served[0], tmp_path / "home")
    assert done.returncode and "BadBase: the hub has no org/other" in done.stderr


def test_a_hub_that_is_down(tmp_path: Path) -> None:
    done = opened("org/tiny", "http://127.0.0.1:9", tmp_path / "home")
    assert done.returncode and "the hub cannot be reached" in done.stderr.splitlines()[-1]
