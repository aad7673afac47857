"""A file that takes long to make, made part by part: a part that is finished is kept beside it until the whole is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from torch import Tensor

from hyperdreambooth.errors import BadFile
from hyperdreambooth.files import load_metadata, load_tensors, save_tensors

Part = tuple[Mapping[str, Tensor], Mapping[str, str]]
"""Named tensors and words, as a file holds them."""


def parts(path: Path, contents: Sequence[str], make: Callable[[list[int]], Generator[Part]]) -> Iterator[Part]:
    """Every part of a file in order, those that are kept from where they are; `remove_parts` when the whole is written.

    Args:
        path: of the whole.
        contents: says of each part what decides it: one that is kept of anything else is made anew.
        make: the parts of these numbers, in order.

    Raises:
        DiskFull, WorkError: a part cannot be written; those before stay.
    """
    kept = [_content(_part(path, number)) == content for number, content in enumerate(contents)]
    with closing(make([number for number, there in enumerate(kept) if not there])) as made:
        for number, content in enumerate(contents):
            if not kept[number]:
                tensors, about = next(made)
                save_tensors(_part(path, number), tensors, {**about, "content": content})
            yield load_tensors(_part(path, number))


def remove_parts(path: Path) -> None:
    """Remove what is kept beside a file, those of other contents among them."""
    for part in path.parent.glob(f"{path.stem}.part-*.safetensors"):
        part.unlink()


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.part-{number:04d}.safetensors")


def _content(part: Path) -> str | None:
    """What a kept part was made of; None where there is none that can be read."""
    try:
        return load_metadata(part).get("content")
    except BadFile:
        return None
