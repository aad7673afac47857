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

import huggingface_hub
import pytest
from huggingface_hub import constants

from hyperdreambooth.base.hub import fetch
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import BadBase, DiskFull, HyperDreamBoothError, WorkError
from hyperdreambooth.hub import is_hub_id

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
    with pytest.raises(BadBase, match="not whole in the hub's cache, and the hub cannot be reached") as caught:
        load_base(name)
    assert "\n" not in str(caught.value)


def test_which_names_can_be_of_the_hub() -> None:
    assert all(map(is_hub_id, ("org/name", "org/name@main", "a-b/c.d_e@refs/pr/1")))
    assert not any(map(is_hub_id, ("name", "/org/name", "a/b/c", "../name", "./x", "org/name@", "a b/c")))


def test_a_full_disk_and_a_broken_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(number: int) -> None:
        def fail(*_: object, **__: object) -> str:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)

    failing(errno.ENOSPC)
    with pytest.raises(DiskFull, match="no room to fetch org/name"):
        fetch("org/name")
    failing(errno.ECONNRESET)
    with pytest.raises(WorkError, match="run again"):
        fetch("org/name")


class _Hub(BaseHTTPRequestHandler):
    """As much of a hub as serves one public repository, org/tiny, and what it answers when it does not."""

    folder: Path
    asked: list[str]
    trouble: dict[str, tuple[int, str]]  # how paths begin that get a status and the hub's code for an error
    broken: str = ""  # what becomes of the U-Net's weights: "cut" in the middle and gone then, or "late"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path, data, headers = self.path.partition("?")[0], b"", {}
        for start, (status, code) in self.trouble.items():
            if path.startswith(start):
                return self._refuse(status, code)
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
            return self._refuse(404, "RepoNotFound")
        if body and self.broken and path.endswith("unet/diffusion_pytorch_model.safetensors"):
            return self._break(data)
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _break(self, data: bytes) -> None:
        self.close_connection = True
        if self.broken == "late":
            threading.Event().wait(1.0)
        elif len(self.asked) == len(set(self.asked)):  # the first time
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(base_folder: Path, tmp_path: Path) -> Iterator[tuple[str, type[_Hub]]]:
    """The address of a hub with the tiny base and files that nobody here needs, and how it answers."""
    folder = Path(shutil.copytree(base_folder, tmp_path / "repository"))
    for name in (
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "v1.ckpt",
        "a.png",
    ):
        (folder / name).write_bytes(b"large")
    handler = type("Hub", (_Hub,), {"folder": folder, "asked": list[str](), "trouble": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def served(hub: tuple[str, type[_Hub]]) -> tuple[str, list[str]]:
    """The hub's address, and the names that were fetched."""
    return hub[0], hub[1].asked


@pytest.fixture
def here(hub: tuple[str, type[_Hub]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[_Hub]:
    """The hub, in which this process believes, with little patience."""
    template = hub[0] + "/{repo_id}/resolve/{revision}/{filename}"
    values = {"ENDPOINT": hub[0], "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(tmp_path / "cache")}
    values |= {"HF_HUB_OFFLINE": False, "HF_HUB_DOWNLOAD_TIMEOUT": 0.2, "HF_HUB_DISABLE_XET": True}
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client's pauses between its attempts
    return hub[1]


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
    assert done.returncode and "BadBase: the hub has no repository org/other" in done.stderr


def test_a_hub_that_is_down(tmp_path: Path) -> None:
    done = opened("org/tiny", "http://127.0.0.1:9", tmp_path / "home")
    assert done.returncode and "the hub cannot be reached" in done.stderr.splitlines()[-1]


_API = "/api/models/org/tiny"


@pytest.mark.parametrize(
    ("trouble", "name", "kind", "words"),
    [
        ({_API: (403, "GatedRepo")}, "org/tiny", BadBase, "may not be read by everybody: accept its terms"),
        ({"/org/tiny/resolve": (401, "GatedRepo")}, "org/tiny", BadBase, "accept its terms on the hub"),
        ({_API: (404, "RevisionNotFound")}, "org/tiny@v9", BadBase, "org/tiny has no revision 'v9' on the hub"),
        ({f"{_API}/tree": (404, "RevisionNotFound")}, f"org/tiny@{'f' * 40}", BadBase, "has no revision 'ffff"),
        ({_API: (401, "")}, "org/tiny", BadBase, "refused the token for org/tiny (status 401)"),
        ({_API: (403, "")}, "org/tiny", BadBase, "refused the token for org/tiny (status 403)"),
        ({_API: (500, "")}, "org/tiny", WorkError, "failed (status 500) for org/tiny: try again later"),
        ({"/org/tiny/resolve": (500, "")}, "org/tiny", WorkError, "failed (status 500)"),
        ({"/org/tiny/resolve": (403, "")}, "org/tiny", BadBase, "expected one that may read it"),
    ],
)
def test_what_the_hub_says_no_with_is_one_line(
    here: type[_Hub], trouble: dict[str, tuple[int, str]], name: str, kind: type[Exception], words: str
) -> None:
    here.trouble = trouble
    with pytest.raises(HyperDreamBoothError) as caught:
        fetch(name)
    assert type(caught.value) is kind and words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Task error: File reconstruction error: error sending request", WorkError),
        ("CAS service error : IO Error: No space left on device (os error 28)", DiskFull),
    ],
)
def test_what_xet_says_is_one_line(said: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """The downloader of large files raises nothing but RuntimeError, whatever it is."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(HyperDreamBoothError) as caught:
        fetch("org/tiny")
    assert type(caught.value) is kind and "org/tiny" in str(caught.value) and "\n" not in str(caught.value)


def test_the_path_of_a_file_is_not_asked_for() -> None:
    assert is_hub_id("org/name") and is_hub_id("org/name@v1.safetensors")
    for path in ("models/dreamshaper.safetensors", "models/old.ckpt", "models/yunet.onnx"):
        assert not is_hub_id(path)
        with pytest.raises(BadBase, match=f"{path} is no folder"):
            load_base(path)


def test_a_base_of_pickled_files_alone_is_said_to_be_one(here: type[_Hub]) -> None:
    for file in (here.folder / "unet").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(BadBase, match=r"org/tiny came with no safetensors of its unet \(pickled files are never fetch"):
        fetch("org/tiny")
    assert "unet/config.json" in here.asked and not [name for name in here.asked if name.endswith(".bin")]


@pytest.mark.parametrize("broken", ["cut", "late"])
def test_a_connection_that_breaks_in_mid_download_is_one_line(here: type[_Hub], broken: str) -> None:
    here.broken = broken
    with pytest.raises(WorkError, match=r"cannot reach the hub at http://127.* check the connection and run") as caught:
        fetch("org/tiny")
    assert "\n" not in str(caught.value)
    here.broken = ""
    assert (fetch("org/tiny") / "unet" / "diffusion_pytorch_model.safetensors").is_file()
