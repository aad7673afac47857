"""People to and from the Hugging Face hub: private unless said otherwise, because a person is a face."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hyperdreambooth.drawing import read_person
from hyperdreambooth.errors import UserError
from hyperdreambooth.exchange.cards import model_card
from hyperdreambooth.files import write_atomically
from hyperdreambooth.hub import hub_errors
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
    with hub_errors(repository), _quiet():
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
    from huggingface_hub.errors import RemoteEntryNotFoundError

    api: Any = HfApi()
    with TemporaryDirectory() as folder, hub_errors(repository, right="read it"), _quiet():
        try:
            got = Path(api.hf_hub_download(repository, FILE, local_dir=folder))
        except RemoteEntryNotFoundError:
            raise UserError(
                f"{repository} holds no {FILE}, expected a person that `hdb push` sent: check the name"
            ) from None
        person = read_person(got)
        write_atomically(path, lambda part: shutil.copyfile(got, part))
    return person


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
