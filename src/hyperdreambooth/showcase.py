"""The sheet that shows what a personalisation gave: the photograph, before and after fine-tuning, in many prompts."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from hyperdreambooth.baselines.work import Work
from hyperdreambooth.drawing import DrawConfig, Subject
from hyperdreambooth.personalization import Photo, read_face
from hyperdreambooth.pipeline import HyperDreamBooth, OnProgress
from hyperdreambooth.portraits.captions import STYLE_SCENES, caption
from hyperdreambooth.sheet import contact_sheet, to_image

PROMPTS = tuple(caption(scene, "[V] face") for scene in STYLE_SCENES)
NOBODY, PREDICTED, TUNED = "nobody: the base alone", "hypernetwork only", "after fine-tuning"

_REFERENCE = 384  # side of the photograph's crop, in pixels


def showcase(
    booth: HyperDreamBooth,
    work: Work,
    photo: Photo,
    config: DrawConfig,
    *,
    prompts: Sequence[str] = PROMPTS,
    captions: Sequence[str] = (),
    progress: OnProgress | None = None,
) -> tuple[Image.Image, int]:
    """Draw the person of a finished personalisation, all rows from the same noise: the sheet, and its U-Net samples.

    Rows are the hypernetwork alone and the person after fine-tuning, where there is the one and the other. Without a
    hypernetwork the first row is nobody, so that a sheet always says what the person changes.

    Args:
        photo: what the person was made from, shown as the reference.
        captions: lines of small print under it.
    """
    rows = _rows(work)
    people = [person for person in rows.values() for _ in prompts]
    pictures = booth.draw(people, [*prompts] * len(rows), config, progress)  # (rows * prompts, 3, H, W)
    images = [to_image(picture) for picture in pictures]
    drawn = {label: images[row * len(prompts) :][: len(prompts)] for row, label in enumerate(rows)}
    reference = to_image(read_face(photo, _REFERENCE).picture)
    sheet = contact_sheet(prompts, drawn, reference=reference, captions=["reference", *captions])
    return sheet, config.samples(people, booth.base)


def _rows(work: Work) -> dict[str, Subject]:
    (person,) = work.people
    if work.predicted is None:
        return {NOBODY: None, TUNED: person}
    if person is work.predicted[0]:
        return {PREDICTED: person}
    return {PREDICTED: work.predicted[0], TUNED: person}
