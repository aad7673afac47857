"""The page of a study: one HTML file that needs nothing else, and tells nobody which method drew what."""

from __future__ import annotations

import base64
import json
from functools import cache
from io import BytesIO
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from hyperdreambooth.errors import NotWritable
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.study import Study
from hyperdreambooth.evaluation.study_scores import FORMAT
from hyperdreambooth.faces import read_picture
from hyperdreambooth.files import write_folder
from hyperdreambooth.portraits.captions import parse
from hyperdreambooth.portraits.styles import stylize
from hyperdreambooth.sheet import to_image

PAGE_FILE, KEY_FILE = "page.html", "key.json"
LARGEST_SIDE = 512  # of a picture in the page, in pixels
_TEMPLATE = Path(__file__).with_name("study_page.html")


def study_page(study: Study, run: RunFolder) -> str:
    """The page as HTML. Every participant gets the questions in an order of their own.

    Pictures are drawn anew into it, without names and without what their files say beside the pixels; one that
    several questions show is there once.

    Raises:
        BadPicture: one of the study's pictures cannot be read.
    """
    pictures: dict[str, int] = {}  # as data: URIs, numbered

    @cache
    def number(path: Path, style: str = "plain") -> int:
        return pictures.setdefault(_data_uri(stylize(read_picture(path)[None], style)[0]), len(pictures))

    questions = []
    for one in study.questions:
        shown = {"person": number(run.reference(one.person))}
        if one.style_of is not None:
            shown["style"] = number(run.reference(one.style_of), parse(one.prompt).style)
        shown |= {"left": number(run.path / one.left_file), "right": number(run.path / one.right_file)}
        questions.append({"id": one.id, **shown})
    said = {
        "format": FORMAT,
        "id": study.id,
        "styled": study.kind == "style",
        "questions": questions,
        "pictures": list(pictures),
    }
    return _TEMPLATE.read_text("utf-8").replace("__STUDY__", json.dumps(said))  # no "<" in it: digests and base64


def write_study(folder: Path, study: Study, run: RunFolder) -> int:
    """Write the page and the key into a folder; the page's size in bytes.

    Raises:
        NotWritable: the folder has the key of another study, whose answers would be lost with it.
    """
    key = folder / KEY_FILE
    if key.exists() and key.read_text("utf-8", errors="replace") != study.to_json():
        raise NotWritable(
            f"{key} is of another study, whose answers are worth nothing without it: choose another folder"
        )
    page = study_page(study, run).encode()

    def write(part: Path) -> None:
        (part / KEY_FILE).write_text(study.to_json(), "utf-8")
        (part / PAGE_FILE).write_bytes(page)

    write_folder(folder, write)
    return len(page)


def _data_uri(picture: Tensor) -> str:
    """A picture (3, H, W) as a PNG in a data: URI."""
    longest = max(picture.shape[-2:])
    if longest > LARGEST_SIDE:
        size = [round(side * LARGEST_SIDE / longest) for side in picture.shape[-2:]]
        picture = functional.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
    encoded = BytesIO()
    to_image(picture).save(encoded, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()
