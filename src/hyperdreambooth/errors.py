"""The exception tree: every error that a user may meet, one line each: what was got, what was expected, what to do.

Two branches decide the exit status of the command line: `UserError` (2, found before work starts) and `WorkError`
(1, work that failed on the way).
"""

from collections.abc import Mapping


class HyperDreamBoothError(Exception):
    """Base of everything this package raises on purpose; its text is one line fit for a person to read."""


class UserError(HyperDreamBoothError):
    """Wrong use or bad input, found before work starts: exit status 2."""


class WorkError(HyperDreamBoothError):
    """Work that started and could not be finished: exit status 1."""


class BadPicture(UserError):
    """A file that is not a picture, cannot be read, or has a size that cannot be a photograph."""


class BadFile(UserError):
    """A tensor file that is absent, truncated, pickled, or not safetensors at all."""


class BadIdentityFile(BadFile):
    """A tensor file that holds no usable identity: foreign, damaged, or with numbers that are not finite."""


class NewerFormat(BadIdentityFile):
    """An identity file of a later format version than this library reads."""


class WrongBase(UserError):
    """An identity, or a hypernetwork, that was made for another base model."""

    @classmethod
    def of(cls, what: object, made_for: str, made_name: str, base: str, base_name: str) -> "WrongBase":
        """The error of something made for one base (fingerprint and name) and used on another.

        A name that is the same says that the base has changed since, as the embedded one does from version to version.
        """
        there = "" if made_name == "embedded" or "/" in made_name else ", the path of that file or folder"
        changed = made_name == base_name
        remedy = "it has changed since: make it anew" if changed else f"load it with --base {made_name}{there}"
        made, here = f'"{made_name}" ({made_for[:8]}...)', f'"{base_name}" ({base[:8]}...)'
        return cls(f"{what} was made for base {made}, this is {here}: {remedy}")


class WrongSpace(UserError):
    """An identity whose LiDB space (sites, a, b, seed, scale, basis) is not the one in use."""

    @classmethod
    def check(cls, what: str, got: Mapping[str, object], here: Mapping[str, object], remedy: str) -> None:
        """Raise the error of "`what` another LiDB space", naming the fields of `here` that are other in `got`."""
        if apart := [f"{key} {got.get(key)}, here {here[key]}" for key in here if got.get(key) != here[key]]:
            raise cls(f"{what} another LiDB space ({'; '.join(apart)}): {remedy}")


class SiteTooNarrow(UserError):
    """A layer with fewer inputs than a, or fewer outputs than b, so that it holds no incomplete basis (eq. 1)."""


class BadBase(UserError):
    """A base model that is unknown, incomplete or damaged."""


class NotWritable(UserError):
    """An output path that cannot be written, found before work starts."""


class DiskFull(WorkError):
    """The disk, the quota or the file-size limit ran out while writing."""


class NotFinite(WorkError):
    """A fit whose loss, a person whose numbers, or pictures whose colours are not finite: the same if tried again."""


class OutOfMemory(WorkError):
    """The memory of the device ran out."""

    @classmethod
    def of(
        cls,
        device: str,
        mode: str,
        following: str | None,
        needs: Mapping[str, int] | None = None,
        room: int = 0,
        fewer: str = "",
    ) -> "OutOfMemory":
        """The error of a device in a low-memory mode, with the mode to take instead; None where no other helps.

        needs, room: estimated bytes of the modes, and those of the device, where they are known.
        fewer: options that do less at once, which saves more, if the command has any.
        """
        last, sizes = "a smaller base, --precision bf16 or fp16 on a GPU, or a device with more memory is left", ""
        remedy = last if following is None else f"run again with --low-memory {following}"
        if needs:
            smallest = following or min(needs, key=needs.__getitem__)
            sizes = f" ({smallest} needs about {needs[smallest] / 1e9:.1f} GB, there are {room / 1e9:.1f} GB)"
            remedy = remedy if following else f"no mode fits, {last}"
        less = f"do less at once with {fewer}, or " if fewer else ""
        return cls(f"the memory of {device} ran out with --low-memory {mode}{sizes}: {less}{remedy}")


def one_line(error: Exception) -> str:
    """An error's text on one line, cut to 160 characters."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def last_line(error: Exception) -> str:
    """The last line of an error's text, where a traceback says what it was, cut to 160 characters."""
    return str(error).strip().rpartition("\n")[2].strip()[:160] or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says that a device has no room, in the words that it has for each kind."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in words)
