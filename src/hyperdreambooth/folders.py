"""Who is in which picture: folders of people, the layouts of the field's data sets, and Hugging Face data sets.

    folder/person/photo.jpg                  each folder is a person
    folder/photo.jpg                         each picture is a person; both may lie side by side
    folder/identity_*.txt                    a line "photo.jpg PERSON" for each picture below the folder, as of CelebA
    folder/CelebA-HQ-to-CelebA-mapping.txt   CelebA-HQ as it comes, where CelebA's identity_CelebA.txt lies beside this
    folder/00000/00000.png                   FFHQ as it comes: each picture is a person
    folder/images/...                        with no other pictures beside it: any of these inside (SFHQ)

Pictures are found here, and read elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperdreambooth.errors import BadPicture, UserError, one_line
from hyperdreambooth.files import write_text
from hyperdreambooth.progress import log

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("training", "tuning", "reporting")
"""What `write_splits` makes of some people: a list of names each, and nobody in two."""

LEARNT_FROM = "people.txt"
"""A list of names in the folder of a training: whom it learns from and measures on as it goes."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_MAPPING, _IDENTITIES = "CelebA-HQ-to-CelebA-mapping.txt", "identity_*.txt"
_HIDDEN = (".", "__MACOSX")  # names that begin so are no people and no pictures
_ENTERED = ("images1024x1024", "thumbnails128x128", "images")  # FFHQ's two, SFHQ's
_THOUSAND = re.compile(r"\d\d000")  # a folder of FFHQ's; 00000.png to 00999.png lie in 00000
_CELEBA_HQ_DIGITS = 5  # at most, of its pictures' numbers, 7.jpg or 00007.jpg; CelebA's own, 000007.jpg, have six
_PERSON = ("identity", "person", "celeb_id", "person_id", "label", "name")  # columns that may say who it is


@dataclass(frozen=True)
class Encoded:
    """A picture that is no file of its own: its name, for people, and what fetches its bytes."""

    name: str
    fetch: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


Source = Path | Encoded
Sources = dict[str, list[Source]]


def pictures_of_people(folder: Path) -> Sources:
    """The pictures of each person of a folder, by name, in order.

    Raises:
        UserError: two people of one name, a file of identities that cannot be understood, or CelebA-HQ without one.
    """
    folder = _entered(folder)
    if lists := sorted(folder.glob(_IDENTITIES)):
        return _by_identity(folder, lists[0])
    if (folder / _MAPPING).exists():
        raise UserError(
            f"{folder} is CelebA-HQ without identity_CelebA.txt, expected it beside {_MAPPING}: "
            "it comes with CelebA, among the annotations"
        )
    found: Sources = {}
    empty = 0
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(_HIDDEN):
            continue
        for name, pictures in _of_entry(entry):
            if not pictures:
                empty += 1
                continue
            if name in found:
                raise UserError(
                    f"got two people of the name {name} in {folder}: rename one, or put both into one folder"
                )
            found[name] = pictures
    if empty:
        log.warning("%d folders of %s hold no %s: left out", empty, folder, ", ".join(_SUFFIXES))
    return found


def _entered(folder: Path) -> Path:
    """The folder, or the one inside it that holds all the pictures of a data set as it comes."""
    for name in _ENTERED:
        if (inside := folder / name).is_dir() and not any(map(_is_picture, folder.iterdir())):
            others = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name not in _ENTERED]
            if not others:
                return _entered(inside)
    return folder


def _of_entry(entry: Path) -> Iterable[tuple[str, list[Source]]]:
    """The people of one entry of a folder."""
    if not entry.is_dir():
        return [(entry.stem, [entry])] if _is_picture(entry) else []
    inside = sorted(path for path in entry.iterdir() if _is_picture(path) and not path.name.startswith(_HIDDEN))
    if _THOUSAND.fullmatch(entry.name) and all(_of_thousand(entry, picture) for picture in inside):
        return [(picture.stem, [picture]) for picture in inside]
    return [(entry.name, [*inside])]


def _of_thousand(folder: Path, picture: Path) -> bool:
    """Whether a picture is one of FFHQ's in its folder."""
    return re.fullmatch(r"\d{5}", picture.stem) is not None and picture.stem[:2] == folder.name[:2]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def _by_identity(folder: Path, file: Path) -> Sources:
    """Pictures anywhere below a folder, each of the person whom a file of identities names."""
    person = {picture: who for picture, who in _lines(file, "PICTURE PERSON")}  # noqa: C416  # lists of two words
    original = None
    if (mapping := folder / _MAPPING).exists():  # "0 119613 119614.jpg": CelebA-HQ's number, CelebA's, CelebA's file
        original = {int(line[0]): line[-1] for line in _lines(mapping, "NUMBER NUMBER PICTURE") if line[0].isdecimal()}
    found: Sources = {}
    strangers = 0
    for picture in sorted(filter(_is_picture, folder.rglob("*"))):
        if original is None:
            name: str | None = picture.name
        elif picture.stem.isdecimal():
            name = original.get(int(picture.stem)) if len(picture.stem) <= _CELEBA_HQ_DIGITS else None
        else:
            continue  # a mask
        if name in person:
            found.setdefault(person[name], []).append(picture)
        else:
            strangers += 1
    if strangers:
        where = file if original is None else f"{mapping} and {file.name}"
        log.warning("%d pictures are not in %s: left out", strangers, where)
    return dict(sorted(found.items()))


def _lines(file: Path, expected: str) -> list[list[str]]:
    """The words of each line. Raises UserError where a line has another number of them than is expected."""
    try:
        text = file.read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file} ({error}), expected lines of {expected}: fetch it anew") from error
    lines = [line.split() for line in text.splitlines() if line.strip()]
    for number, words in enumerate(lines, 1):
        if len(words) != len(expected.split()):
            raise UserError(f'{file}, line {number} is "{" ".join(words)[:60]}", expected {expected}: fetch it anew')
    return lines


def pictures_of_dataset(name: str) -> Sources:
    """The pictures of each person of a Hugging Face data set, of all its splits together.

    Args:
        name: an id of the hub ("org/name", "org/name@revision"), a folder that `save_to_disk` wrote, or a folder of
            Parquet files. The first column of images is taken, and of people the first that is there of identity,
            person, celeb_id, person_id, label and name; without one, each picture is a person.

    Raises:
        UserError: the library `datasets` is missing, or there is no such data set, or it has no column of images.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "got a data set, expected the library that reads them: pip install 'hyperdreambooth[data]'"
        ) from error
    place, _, revision = name.partition("@")
    datasets.disable_progress_bars()
    try:
        if (Path(place) / "dataset_dict.json").exists() or (Path(place) / "state.json").exists():
            opened = datasets.load_from_disk(place)
        else:
            opened = datasets.load_dataset(place, revision=revision or None)
    except Exception as error:  # of many kinds, from many libraries
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot open the data set {name} ({reason}), expected an id of the hub or a folder: check it"
        ) from error
    splits = opened if isinstance(opened, Mapping) else {"": opened}
    found: Sources = {}
    for split, rows in splits.items():
        images = [key for key, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        if not images:
            raise UserError(
                f"{name} has the columns {', '.join(rows.features)}, expected one of images: choose another"
            )
        encoded = rows.select_columns(images[0]).cast_column(images[0], datasets.Image(decode=False))
        column = next((key for key in _PERSON if key in rows.features), None)
        people = [f"{split}-{row:07d}" if split else f"{row:07d}" for row in range(len(rows))]
        if column is not None:
            names = getattr(rows.features[column], "names", None)  # of a column of classes
            people = [str(names[value] if names else value) for value in rows[column]]
        for row, person in enumerate(people):
            label = f"{name}, {split or 'row'} {row}"
            found.setdefault(person, []).append(_in_dataset(encoded, images[0], row, label))
    return found


def _in_dataset(rows: Sequence[Mapping[str, Mapping[str, object]]], column: str, row: int, name: str) -> Source:
    """One picture of a data set, whose bytes are fetched when they are asked for."""

    def fetch() -> bytes:
        try:
            image = rows[row][column]
            data = image["bytes"]
            return data if isinstance(data, bytes) else Path(str(image["path"])).read_bytes()
        except (OSError, LookupError, TypeError) as error:  # a row without a picture, or a file that is gone
            raise BadPicture(f"{name} has no picture ({one_line(error)}), expected one: mend the data set") from error

    return Encoded(name, fetch)


def write_splits(
    names: Sequence[str], tuning: int, reporting: int, folder: Path, random: np.random.RandomState
) -> dict[str, int]:
    """Divide people at random into three lists of names, a file each in the folder; how many each holds.

    All pictures of a person are in one of them: a person who is measured on was never learnt from.

    Raises:
        UserError: fewer people than are held out.
    """
    if not 0 <= tuning + reporting < len(names):
        raise UserError(
            f"got {len(names)} people of whom {tuning} tune and {reporting} report, expected more: hold out fewer"
        )
    order = [names[row] for row in random.permutation(len(names))]
    rest = tuning + reporting
    parts = {"tuning": order[:tuning], "reporting": order[tuning:rest], "training": order[rest:]}
    for split in SPLITS:
        write_names(folder / f"{split}.txt", sorted(parts[split]))
    return {split: len(parts[split]) for split in SPLITS}


def write_names(path: Path, names: Sequence[str]) -> None:
    """A list of names, one on a line, as `read_names` takes it."""
    write_text(path, "".join(f"{name}\n" for name in names))


def read_names(path: Path) -> list[str]:
    """The names of a list, one on a line.

    Raises:
        UserError: it cannot be read or is empty, or names somebody who is in another of the `SPLITS` beside it.
    """
    names = _names(path)
    if not names:
        raise UserError(f"{path} is empty, expected a name on each line: check the path")
    for split in SPLITS:
        other = path.with_name(f"{split}.txt")
        if path.stem in SPLITS and other != path and other.exists() and (both := set(names) & set(_names(other))):
            raise UserError(
                f"{path} and {other.name} share {len(both)} people, such as {min(both)}, expected each in one: "
                "whom is learnt from must not be measured on"
            )
    return names


def check_apart(names: Sequence[str], network: Path) -> None:
    """Raise UserError for people who are to be measured on, and whom a network has learnt from.

    network: a training's folder, or the file of its result there.
    """
    known = (network.parent if network.is_file() else network) / LEARNT_FROM
    if known.exists() and (both := set(names) & set(_names(known))):
        raise UserError(
            f"{network} has learnt from {len(both)} of the people to be measured on, such as {min(both)}, expected "
            "others: give those that hdb split held out, by --only lists/reporting.txt"
        )


def _names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}), expected a file of names: check the path") from error
