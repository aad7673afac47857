"""The Hugging Face hub through its own client: how an id is spelt, fetching, and what goes wrong there in one line."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hyperdreambooth.errors import DiskFull, HyperDreamBoothError, UserError, WorkError, one_line

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".onnx")
_NO_ROOM = re.compile(r"os error 28|No space left", re.IGNORECASE)  # in the words of the hub's own downloader


def is_hub_id(name: str) -> bool:
    """Whether a name can be one of the hub: "org/name" or "org/name@revision"; a path to weights in a file is none."""
    return _ID.fullmatch(name) is not None and Path(name.partition("@")[0]).suffix not in _FILES


def download(name: str, patterns: Sequence[str], bad: type[UserError] = UserError) -> Path:
    """The folder, in the client's own cache, of a repository's files that are asked for, fetched where they lack.

    With HF_HUB_OFFLINE=1, or without a connection, the cache alone is looked at.

    Args:
        name: "org/name" or "org/name@revision".
        patterns: of the files' names, as the shell's.
        bad: the error of a name that does not lead to the files.

    Raises:
        UserError: as `bad`: there is no such repository or revision, it may not be read, or it is neither cached nor
            reachable. DiskFull: no room. WorkError: the connection broke, or the hub failed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    with hub_errors(name, bad, "read it", beside=", and there is no such folder here"):
        try:
            return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
        except LocalEntryNotFoundError as error:
            if isinstance(error.__cause__, HfHubHTTPError):
                raise error.__cause__ from None
            raise bad(
                f"{name} is no folder here and not whole in the hub's cache, and the hub cannot be reached: connect "
                "once, or give what is on this disk"
            ) from None


@contextmanager
def hub_errors(
    name: str, bad: type[UserError] = UserError, right: str = "write there", beside: str = ""
) -> Iterator[None]:
    """Whatever the hub's client raises inside, in our own words: its own hold addresses and several lines.

    Args:
        name: the repository, with or without "@revision".
        bad: the error of a name, or of a right, that the user lacks.
        right: what the user's token must allow.
        beside: words to go with a repository that is not there.

    Raises:
        UserError: as `bad`. DiskFull: no room. WorkError: the hub cannot be reached, or fails.
    """
    try:
        yield
    except HyperDreamBoothError:
        raise
    except Exception as error:
        if (said := _in_our_words(error, name, bad, right, beside)) is None:
            raise
        raise said from None  # the client's own error holds the request, and the request the token


def _in_our_words(
    error: Exception, name: str, bad: type[UserError], right: str, beside: str
) -> HyperDreamBoothError | None:
    """The error to raise instead; None for one that is not of the hub, its client or the disk."""
    from huggingface_hub import constants, errors

    repository, _, revision = name.partition("@")
    texts = {
        errors.HFValidationError: f"got {repository!r}, expected a repository OWNER/NAME: check the name",
        errors.GatedRepoError: f"{repository} may not be read by everybody: accept its terms on the hub, then "
        "`hf auth login`",
        errors.RevisionNotFoundError: f"{repository} has no revision {revision!r} on the hub: check the name after @",
        errors.RepositoryNotFoundError: f"the hub has no repository {repository}, or this token may not see it"
        f"{beside}: check the name and `hf auth whoami`",
    }
    for kind, text in texts.items():
        if isinstance(error, kind):
            return bad(text)
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error.response.status_code, repository, bad, right)
    broken = (errors.HTTPError, errors.LocalEntryNotFoundError, errors.XetDownloadError, ConnectionError, TimeoutError)
    if isinstance(error, broken):
        reason = type(error.__cause__ or error).__name__
        return WorkError(
            f"cannot reach the hub at {constants.ENDPOINT} for {repository} ({reason}): check the connection and run "
            "again"
        )
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or _NO_ROOM.search(str(error)):
        return DiskFull(f"no room to fetch {name} into the hub's cache: free some space and run again")
    if type(error) is RuntimeError:  # all that Xet, which brings the large files, says of anything
        return WorkError(f"cannot fetch {name} ({one_line(error)}): check the connection and run again")
    if isinstance(error, ValueError) and "metadata" in str(error):
        return UserError(f"the hub refused the card for {repository} ({one_line(error)}): check the base's name")
    return WorkError(f"could not fetch {name} ({one_line(error)}): run again") if isinstance(error, OSError) else None


def _refused(status: int, repository: str, bad: type[UserError], right: str) -> HyperDreamBoothError:
    """The error of an answer that the hub's client has no name for."""
    from huggingface_hub import constants

    if status in (401, 403):
        return bad(
            f"the hub refused the token for {repository} (status {status}), expected one that may {right}: "
            "`hf auth login`"
        )
    return WorkError(f"the hub at {constants.ENDPOINT} failed (status {status}) for {repository}: try again later")
