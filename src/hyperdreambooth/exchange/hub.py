"""People to and from the Hugging Face hub: private unless said otherwise, because a person is a face."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hyperdreambooth.drawing import read_person
from hyperdreambooth.errors import UserError, WorkError
from hyperdreambooth.exchange.cards import model_card
from hyperdreambooth.files import write_atomically
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb.export import CARD
from hyperdreambooth.tuned import Tuned

FILE = "identity.safetensors"  # a person's name in a repository


def push(path: str | Path, repository: str, public: bool = False) -> tuple[str, bool]:
    """Send an identity file and a model card to the hub; its address there, and whether it is private.

    Args:
        path: the identity file.
        repository: "owner/name"; made if it is not there.
        public: for everybody to see. Without it the repository is made private, and a public one is refused.

    Raises:
        BadFile, BadIdentityFile: not a sound identity. UserError: no token, no such right, a public repository, or a
            name that cannot be. WorkError: the hub cannot be reached, or fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    person = read_person(path)
    api: Any = HfApi()
    with _one_line_errors(api.endpoint, repository):
        if not get_token():
            raise UserError("got no token for the hub, expected one in HF_TOKEN or by `hf auth login`: log in first")
        made = api.create_repo(repository, private=not public, exist_ok=True)
        private = bool(api.model_info(made.repo_id).private)
        if not (private or public):
            raise UserError(
                f"{made.repo_id} can be seen by everybody, expected a private one for a person's face: make it "
                "private, or give --public"
            )
        card = model_card(person, person.base_name, made.repo_id.rpartition("/")[2], "hyperdreambooth")
        files = [
            CommitOperationAdd(FILE, Path(path).read_bytes()),
            CommitOperationAdd(CARD, card.replace("REPO", made.repo_id).encode()),
        ]
        api.create_commit(made.repo_id, files, commit_message="A person, by hyperdreambooth")
    return str(made), private


def pull(repository: str, path: str | Path) -> Identity | Tuned:
    """Fetch a person from the hub into a file, atomically and only if it is sound; returns who it is.

    Raises:
        UserError: no such repository or no right to see it, no person in it. BadFile, BadIdentityFile: not a sound
            identity. WorkError: the hub cannot be reached, or fails.
    """
    from huggingface_hub import HfApi

    api: Any = HfApi()
    with TemporaryDirectory() as folder, _one_line_errors(api.endpoint, repository):
        got = Path(api.hf_hub_download(repository, FILE, local_dir=folder))
        person = read_person(got)
        write_atomically(path, lambda part: shutil.copyfile(got, part))
    return person


@contextmanager
def _one_line_errors(endpoint: str, repository: str) -> Iterator[None]:
    """Whatever the hub's client raises, in our own words: its own hold addresses and several lines."""
    from huggingface_hub import errors

    def server(error: Any) -> str:
        response = getattr(error, "response", None)
        return f"status {response.status_code}" if response is not None else type(error).__name__

    missing = (
        f"the hub has no repository {repository}, or this token may not see it: check the name and `hf auth whoami`"
    )
    words: list[tuple[type[BaseException] | tuple[type[BaseException], ...], Callable[[Any], Exception]]] = [
        (errors.HFValidationError, lambda _: UserError(f"got {repository!r}, expected a repository OWNER/NAME")),
        (errors.RepositoryNotFoundError, lambda _: UserError(missing)),
        (
            errors.RemoteEntryNotFoundError,
            lambda _: UserError(
                f"{repository} holds no {FILE}, expected a person that `hdb push` sent: check the name"
            ),
        ),
        (errors.HfHubHTTPError, lambda error: _refused(endpoint, repository, server(error))),
        (
            (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError),
            lambda error: WorkError(f"cannot reach the hub at {endpoint} ({server(error)}): check the connection"),
        ),
    ]
    try:
        with _quiet():
            yield
    except Exception as error:
        for kind, say in words:
            if isinstance(error, kind):
                raise say(error) from None  # the client's own error holds the request, and the request the token
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's bars and its words about further attempts off the terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    verbosity, silent = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not silent:
            enable_progress_bars()


def _refused(endpoint: str, repository: str, status: str) -> Exception:
    if status in ("status 401", "status 403"):
        return UserError(
            f"the hub refused the token for {repository} ({status}), expected one that may write there: `hf auth login`"
        )
    return WorkError(f"the hub at {endpoint} failed ({status}) for {repository}: try again later")
