"""People to the hub and back, through its own client, against a stand-in of its HTTP interface."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from hyperdreambooth.identity import LICENCE, Identity
from tests.exchange.conftest import Hdb

TOKEN = "hf_not_to_be_printed"
REPO = "ann/alice"
SHA = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """What the hub holds: files by repository and name, and which repositories are private."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.refuse = 0  # a status to answer everything with

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    """The few calls that sending and fetching take."""

    server: Hub

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), "X-Repo-Commit": SHA, **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def absent(self, code: str) -> None:
        self.reply({"error": code}, 404, {"X-Error-Code": code})

    @property
    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.split("?")[0].strip("/").split("/")
        if self.server.refuse or not self.allowed:
            self.reply({"error": "no"}, self.server.refuse or 401)
        elif parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'ann'}/{asked['name']}"
            status = 409 if repo in self.server.files else 200
            self.server.files.setdefault(repo, {})
            self.server.private.setdefault(repo, asked.get("visibility") == "private" or asked.get("private") is True)
            self.reply({"url": f"{self.server.address}/{repo}"}, status)
        elif parts == ["api", "validate-yaml"]:
            assert b"license: other" in body
            self.reply({"warnings": [], "errors": []})
        elif parts[-2:] == ["preupload", "main"]:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self.reply({"files": files})
        elif parts[-2:] == ["commit", "main"]:
            lines = [json.loads(line) for line in body.splitlines()]
            held = self.server.files["/".join(parts[2:4])]
            held |= {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                     for line in lines if line["key"] == "file"}  # fmt: skip
            self.reply({"commitUrl": f"{self.server.address}/{REPO}/commit/{SHA}", "commitOid": SHA})
        else:
            self.absent("NotFound")

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        if self.server.refuse:
            self.reply({"error": "no"}, self.server.refuse)
        elif repo not in self.server.files or (self.server.private[repo] and not self.allowed):
            self.absent("RepoNotFound")
        elif api:
            self.reply({"id": repo, "private": self.server.private[repo], "sha": SHA, "siblings": []})
        elif rest[-1] in self.server.files[repo]:
            self.reply(self.server.files[repo][rest[-1]], headers={"ETag": f'"{SHA}"'})
        else:
            self.absent("EntryNotFound")

    do_HEAD = do_GET


def believe_in(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What HF_ENDPOINT would have set when the client was imported."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in that the client believes in."""
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    believe_in(monkeypatch, server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def test_there_and_back(hub: Hub, hdb: Hdb, alice: Path, tmp_path: Path) -> None:
    got = hdb("push", alice, REPO, base=False)
    assert got["private"] is True and hub.private == {REPO: True} and TOKEN not in json.dumps(got)
    assert got["address"] == f"{hub.address}/{REPO}"
    assert set(hub.files[REPO]) == {"identity.safetensors", "README.md"}
    card = ModelCard(hub.files[REPO]["README.md"].decode())
    assert (
        card.data.instance_prompt == "a photo of a sks face"
        and LICENCE in card.text
        and f"hdb pull {REPO}" in card.text
    )
    output = tmp_path / "back.safetensors"
    assert hdb("pull", REPO, "-o", output, base=False)["prompt"] == "a photo of a [V] face"
    assert output.read_bytes() == alice.read_bytes()
    hdb("push", alice, REPO, base=False)  # once more, into what is there
    assert sorted(file.name for file in tmp_path.iterdir()) == ["alice.safetensors", "back.safetensors"]


def test_public_only_when_asked(hub: Hub, hdb: Hdb, alice: Path) -> None:
    assert hdb("push", alice, REPO, "--public", base=False)["private"] is False
    hub.files[REPO].clear()
    assert "seen by everybody" in hdb("push", alice, REPO, status=2, base=False)
    assert not hub.files[REPO]


def test_what_goes_wrong_is_one_line(
    hub: Hub, hdb: Hdb, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "back.safetensors"
    lines = [
        hdb("pull", "ann/nobody", "-o", output, status=2, base=False),
        hdb("pull", "no name at all", "-o", output, status=2, base=False),
        hdb("push", alice, "a/b/c", status=2, base=False),
    ]
    hub.files["ann/empty"], hub.private["ann/empty"] = {}, True
    lines.append(hdb("pull", "ann/empty", "-o", output, status=2, base=False))
    hub.files["ann/empty"]["identity.safetensors"] = b"not one of ours"
    lines.append(hdb("pull", "ann/empty", "-o", output, status=2, base=False))
    hub.refuse = 403
    lines.append(hdb("push", alice, REPO, status=2, base=False))
    hub.refuse = 500
    lines.append(hdb("push", alice, REPO, status=1, base=False))
    hub.refuse = 0
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    lines.append(hdb("push", alice, REPO, status=2, base=False))
    monkeypatch.delenv("HF_TOKEN")
    lines.append(hdb("push", alice, REPO, status=2, base=False))
    words = (
        "no repository ann/nobody", "OWNER/NAME", "OWNER/NAME", "holds no identity.safetensors", "safetensors file",
        "status 403", "status 500", "status 401", "no token",
    )  # fmt: skip
    for line, word in zip(lines, words, strict=True):
        assert word in line and "hf_" not in line.replace("hf auth", ""), line
    assert not output.exists() and not hub.files.get(REPO)


def test_an_unsound_file_is_not_sent(hub: Hub, hdb: Hdb, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"hello")
    assert "not a safetensors file" in hdb("push", tmp_path / "a.safetensors", REPO, status=2, base=False)
    assert not hub.files


def test_a_hub_that_cannot_be_reached(hdb: Hdb, hub: Hub, alice: Path, tmp_path: Path, monkeypatch: Any) -> None:
    believe_in(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client's pauses between its attempts
    for command in (("push", alice, REPO), ("pull", REPO, "-o", tmp_path / "b.safetensors")):
        line = hdb(*command, status=1, base=False)
        assert "cannot reach the hub at http://127.0.0.1:9" in line and TOKEN not in line
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "cannot reach the hub" in hdb("push", alice, REPO, status=1, base=False)
    assert not (tmp_path / "b.safetensors").exists()


def test_the_programs_own_process_follows_the_environment(hub: Hub, alice: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_TOKEN, as people set them; whatever it prints, the token is not in it."""
    settings = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    code = "from hyperdreambooth.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "push", str(alice), REPO],
        capture_output=True,
        text=True,
        env=os.environ | settings,
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr and hub.private == {REPO: True}
    (tmp_path / "got.safetensors").write_bytes(hub.files[REPO]["identity.safetensors"])
    assert Identity.open(tmp_path / "got.safetensors").prompt == "a photo of a [V] face"
