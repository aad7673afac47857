from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError, WrongSpace
from hyperdreambooth.faces import crop_face, read_picture
from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig, load_people, preoptimize
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.people import People, encode_crowd, encode_people, read_people, split_people
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.styles import stylize
from hyperdreambooth.portraits.view import View
from hyperdreambooth.sheet import to_image
from tests.conftest import adapted_base


def test_everybody_is_trained_on_but_those_held_out(tmp_path: Path) -> None:
    """Six people, of whom five have numbers, given in another order: each row is one person's, numbers come first."""
    base, adapters = adapted_base()
    people = read_people("portraits:0-5", base.picture_size, 2, lambda _: None)
    fitted = ("portrait-4", "portrait-1", "portrait-3", "portrait-0", "portrait-5")
    rows = [people.names.index(name) for name in fitted]
    pictures = encode_people(base, People(fitted, people.pictures[rows]))
    config = PreoptimizeConfig(fit=FitConfig(steps=1, lr=1e-2))
    for _ in preoptimize(base, adapters, fitted, pictures, tmp_path, config):
        pass
    reports = []
    crowd = encode_crowd(base, people, progress=reports.append)
    (training,), (held_out,) = (some.values() for some in split_people(base, crowd, tmp_path))
    assert [report.done for report in reports] == list(range(6))
    numbers = load_people(tmp_path).weights
    for some, order, known in ((training, [4, 1, 3, 2], numbers[:3]), (held_out, [0, 5], numbers[3:])):
        assert torch.equal(some.pictures, (people.pictures[order] * 255).round().byte())
        one_by_one = torch.stack([base.encode_pictures(people.pictures[row]) for row in order])
        assert torch.allclose(some.latents, one_by_one, atol=1e-5)
        assert torch.equal(some.numbers, known)


def test_lookalikes_are_not_divided_between_training_and_measuring(tmp_path: Path) -> None:
    base, people = four_fitted(tmp_path)
    names = (*people.names, "portrait-0~1", "portrait-3~1", "portrait-3~2", "portrait-30")
    more = People(names, torch.cat([people.pictures, people.pictures]))
    (training,), (held_out,) = (some.values() for some in split_people(base, encode_crowd(base, more), tmp_path))
    assert len(held_out.pictures) == 2 and len(training.pictures) == 2 + 2
    known = (people.pictures[[0, 1, 0, 3]] * 255).round().byte()
    assert torch.equal(training.pictures, known)  # portrait-0~1 and portrait-30, whose picture is the last


def test_whoever_has_no_finite_fit_is_neither_learnt_from_nor_measured(tmp_path: Path) -> None:
    base, adapters = adapted_base()
    people = read_people("portraits:0-4", base.picture_size, 2, lambda _: None)
    pictures = encode_people(base, people)
    pictures.latents[1, 0, 0, 0, 0] = float("nan")
    for _ in preoptimize(base, adapters, people.names, pictures, tmp_path, PreoptimizeConfig(FitConfig(steps=1))):
        pass
    assert list(load_people(tmp_path).left_out) == ["portrait-1"]
    (training,), (held_out,) = (some.values() for some in split_people(base, encode_crowd(base, people), tmp_path))
    assert torch.equal(training.pictures, (people.pictures[[0, 2]] * 255).round().byte())
    assert torch.equal(held_out.pictures, (people.pictures[[3, 4]] * 255).round().byte())


def four_fitted(folder: Path) -> tuple[Base, People]:
    """A base, and four portraits in two views that were fitted on it into the folder."""
    base, adapters = adapted_base()
    people = read_people("portraits:0-3", base.picture_size, 2, lambda _: None)
    config = PreoptimizeConfig(fit=FitConfig(steps=1, lr=1e-2))
    for _ in preoptimize(base, adapters, people.names, encode_people(base, people), folder, config):
        pass
    return base, people


def test_everybody_in_all_styles_too(tmp_path: Path) -> None:
    """The pictures of a person take turns under the filters, and each style has the prompt that asks for it."""
    base, people = four_fitted(tmp_path)
    styles = ("neon", "comic")
    (training,), (held_out,) = (
        some.values() for some in split_people(base, encode_crowd(base, people, styles), tmp_path)
    )
    assert training.prompts == ("neon art of a [V] face", "a comic drawing of a [V] face") and training.plain == 2
    for some, rows in ((training, (0, 1)), (held_out, (2, 3))):
        assert some.latents.shape[1] == 4 and some.masks is not None and some.masks.shape[1] == 4
        for own, row in zip(some.latents, rows, strict=True):
            for number, style in enumerate(styles):
                picture = people.pictures[row, (row + number) % 2]
                expected = base.encode_pictures(stylize(picture.unsqueeze(0), style))[0]
                assert torch.allclose(own[2 + number], expected, atol=1e-4)


def test_numbers_of_another_space_are_refused(tmp_path: Path) -> None:
    base, people = four_fitted(tmp_path)
    base.card = replace(base.card, seed=base.card.seed + 1)
    with pytest.raises(WrongSpace, match="seed 0, here 1"):
        split_people(base, encode_crowd(base, people), tmp_path)


def test_a_picture_without_a_face_is_left_out_unless_it_is_a_crop_already(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wall beside a portrait, all of somebody else's pictures walls, and a small square."""
    (tmp_path / "ann").mkdir()
    to_image(render([Person(7)], [View()], 160)[0]).save(tmp_path / "ann" / "b.png")
    for name, size in (("ann/a.png", (160, 160)), ("bob.png", (300, 200)), ("crop.png", (128, 128))):
        Image.new("RGB", size, "grey").save(tmp_path / name)
    people = read_people(str(tmp_path), 16, 1, lambda _: None)
    assert people.names == ("ann", "crop")
    shown = crop_face(read_picture(tmp_path / "ann" / "b.png"), 16).picture
    assert torch.equal(people.pictures[0, 0], (shown * 255).round().byte().float() / 255)
    for name in ("ann/a.png", "bob.png"):
        assert [line for line in caplog.messages if f"left out: no face was found in {tmp_path / name}" in line]
    assert "2 of 4 pictures were left out" in caplog.messages
    for name in ("ann/b.png", "crop.png"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="without a photograph of a face"):
        read_people(str(tmp_path), 16, 1, lambda _: None)


def test_two_people_of_one_name_are_refused_and_a_crop_without_a_face_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ann.png", "bob.png"):
        Image.new("RGB", (80, 80), "grey").save(tmp_path / name)
    assert read_people(str(tmp_path), 16, 1, lambda _: None).names == ("ann", "bob")
    assert sum("face" in line for line in caplog.messages) == 2
    Image.new("RGB", (80, 80), "grey").save(tmp_path / "ann.jpg")
    with pytest.raises(UserError, match="two people of the name ann"):
        read_people(str(tmp_path), 16, 1, lambda _: None)
