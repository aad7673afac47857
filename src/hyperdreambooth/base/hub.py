"""Fetch a base by its hub id: only configurations, vocabularies and safetensors, into the hub client's own cache."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hyperdreambooth.base.folder import NETWORKS, VARIANT, files_of
from hyperdreambooth.base.model import CARD_FILE
from hyperdreambooth.errors import BadBase, DiskFull, WorkError, one_line

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_DESCRIPTIONS = [
    "model_index.json",
    CARD_FILE,
    "scheduler/*.json",
    *(f"tokenizer{number}/*.{kind}" for number in ("", "_2") for kind in ("json", "txt")),
    *(f"{part}/config.json" for part in NETWORKS),
]


def is_hub_id(name: str) -> bool:
    """Whether a name can be one of the hub: "org/name" or "org/name@revision"."""
    return _ID.fullmatch(name) is not None


def fetch(name: str) -> Path:
    """The folder of a base of the hub, "org/name" or "org/name@revision", fetched where it is not in the cache.

    With HF_HUB_OFFLINE=1, or without a connection, the cache alone is looked at. A repository that holds nothing but
    half-precision files is taken in those.

    Raises:
        BadBase: there is no such repository or revision, it may not be read, or it is neither cached nor reachable.
        DiskFull: no room. WorkError: the connection broke.
    """
    plain = [
        pattern
        for part, (_, stem, _) in NETWORKS.items()
        for pattern in (
            f"{part}/{stem}.safetensors",
            f"{part}/{stem}.safetensors.index.json",
            f"{part}/{stem}-?????-of-?????.safetensors",
        )
    ]
    folder = _download(name, _DESCRIPTIONS + plain)
    lacking = [part for part in NETWORKS if (folder / part / "config.json").is_file() and not files_of(folder, part)]
    if lacking:
        stems = [f"{part}/{NETWORKS[part][1]}" for part in lacking]
        _download(
            name,
            [f"{s}.{end}" for s in stems for end in (f"{VARIANT}*.safetensors", f"safetensors.index.{VARIANT}.json")],
        )
    return folder


def _download(name: str, patterns: list[str]) -> Path:
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except GatedRepoError as error:
        raise BadBase(f"{name} may not be read by everybody: accept its terms on the hub and log in there") from error
    except RevisionNotFoundError as error:
        raise BadBase(f"{repository} has no revision {revision!r} on the hub: check the name after @") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise BadBase(f"the hub has no {repository}, and there is no such folder here: check the name") from error
    except LocalEntryNotFoundError as error:
        raise BadBase(
            f"{name} is no folder here and not in the hub's cache, and the hub cannot be reached: connect once, or "
            "give a folder or a .safetensors file"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room to fetch {name} into the hub's cache: free some space and run again") from error
        raise WorkError(f"could not fetch {name} ({one_line(error)}): run again") from error
