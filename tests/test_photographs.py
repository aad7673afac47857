"""Photographs of many people: cut and encoded once, and what they would be if they were read one by one."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hyperdreambooth import kept
from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError
from hyperdreambooth.faces import crop_face, many, read_picture
from hyperdreambooth.faces.finding import Detector
from hyperdreambooth.files import locked
from hyperdreambooth.fitting.processes import Processes
from hyperdreambooth.people import encode_crowd, encode_people, find_people, read_people
from hyperdreambooth.photographs import Keeping, Photographed
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.styles import stylize
from hyperdreambooth.portraits.view import View
from hyperdreambooth.sheet import save_png, to_image

PEOPLE = {"ann": (1, 2, 3), "bea": (4,), "carl": (5, 6), "dora": (4,)}  # seeds; dora is in the very same picture as bea


def photograph(path: Path, seed: int) -> None:
    save_png(path, to_image(render([Person(seed)], [View()], 64)[0]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seeds in PEOPLE.items():
        for seed in seeds:
            photograph(tmp_path / "people" / name / f"{seed}.png", seed)
    (tmp_path / "people" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "people"


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, fresh_base: Base) -> Counter[str]:
    """How many photographs were cut, and how many pictures encoded."""
    count = Counter[str]()
    crop, encode = crop_face, fresh_base.encode_pictures

    def cutting(picture: Tensor, size: int, detector: Detector | None) -> object:
        count["cut"] += 1
        return crop(picture, size, detector)

    def encoding(pictures: Tensor) -> Tensor:
        count["encoded"] += len(pictures)
        return encode(pictures)

    monkeypatch.setattr(many, "crop_face", cutting)
    monkeypatch.setattr(fresh_base, "encode_pictures", encoding)
    return count


def found(folder: Path, *kept_in: Path, views: int = 2, processes: Processes | None = None) -> Photographed:
    keeping = Keeping(kept_in[0], kept_in[1:], processes or Processes())
    people = find_people(str(folder), 16, views, keeping, lambda _: None)
    assert isinstance(people, Photographed)
    return people


def one_by_one(folder: Path) -> Tensor:
    """The first two photographs of everybody, (4, 2, 3, 16, 16) in [0, 1]; whoever has one shows it twice."""
    rows = [[seeds[0], seeds[min(1, len(seeds) - 1)]] for seeds in PEOPLE.values()]
    paths = [[folder / name / f"{seed}.png" for seed in row] for name, row in zip(PEOPLE, rows, strict=True)]
    return torch.stack([torch.stack([crop_face(read_picture(path), 16).picture for path in row]) for row in paths])


def test_faces_and_latents_are_those_of_one_by_one(
    folder: Path, tmp_path: Path, fresh_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    people, crops = found(folder, tmp_path / "kept"), one_by_one(folder)
    assert people.names == tuple(PEOPLE)
    assert torch.equal(people.pictures(), (crops * 255).round().byte())
    latents = encode_people(fresh_base, people).latents
    exact = torch.stack([fresh_base.encode_pictures(own) for own in crops])
    assert (latents - exact).abs().max() < 0.02  # of unit spread: the crops are rounded to 8 bits
    rounded = torch.stack([fresh_base.encode_pictures((own * 255).round() / 255) for own in crops])
    assert torch.allclose(latents, rounded, atol=1e-5)
    assert "1 of 7 pictures were left out" in caplog.messages
    assert "1 photographs were not looked at: 2 of a person are enough" in caplog.messages
    in_memory = read_people(str(folder), 16, 2, lambda _: None)
    assert in_memory.names == people.names and torch.equal(in_memory.pictures, people.pictures().float() / 255)


def test_a_crowd_is_that_of_one_by_one_at_the_encoders_size(folder: Path, tmp_path: Path, fresh_base: Base) -> None:
    crops = (one_by_one(folder) * 255).round() / 255
    small = functional.interpolate(crops.flatten(0, 1), (8, 8), mode="bilinear", antialias=True).view(4, 2, 3, 8, 8)
    for styles in ((), ("neon",)):
        crowd = encode_crowd(fresh_base, found(folder, tmp_path / "kept"), styles, side=8)
        assert crowd.pictures.dtype == torch.uint8 and (crowd.pictures / 255 - small).abs().max() <= 0.51 / 255
        assert crowd.latents.shape[1] == 2 + len(styles)
    neon = torch.cat([fresh_base.encode_pictures(stylize(own[row % 2 :][:1], "neon")) for row, own in enumerate(crops)])
    assert torch.allclose(crowd.latents[:, 2], neon, atol=1e-4)


def test_nothing_is_done_twice(folder: Path, tmp_path: Path, fresh_base: Base, done: Counter[str]) -> None:
    first = encode_people(fresh_base, found(folder, tmp_path / "kept")).latents
    assert done == {"cut": 5, "encoded": 5}  # of bea and dora together one
    again = found(folder, tmp_path / "other", tmp_path / "kept")
    assert torch.equal(encode_people(fresh_base, again).latents, first) and len(again.pictures()) == 4
    assert done == {"cut": 5, "encoded": 5} and not (tmp_path / "other").exists()
    photograph(folder / "carl" / "5.png", 8)
    changed = encode_people(fresh_base, found(folder, tmp_path / "kept")).latents
    assert done == {"cut": 7, "encoded": 7}
    assert [torch.equal(*both) for both in zip(changed, first, strict=True)] == [True, True, False, True]
    fresh_base.to(dtype=torch.bfloat16)
    encode_people(fresh_base, found(folder, tmp_path / "kept"))
    assert done == {"cut": 7, "encoded": 12}
    found(folder, tmp_path / "kept", views=1)
    assert done["cut"] == 7 + 3  # another number of photographs is another person


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def damage_foreign(path: Path) -> None:
    path.write_bytes(b"PK of somebody else")


@pytest.mark.parametrize("damage", [damage_cut, damage_bit, damage_foreign])
@pytest.mark.parametrize("kind", ["faces", "latents"])
def test_what_is_damaged_is_made_again_and_said_in_a_line(
    damage, kind: str, folder: Path, tmp_path: Path, fresh_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    people = found(folder, tmp_path)
    pictures, latents = people.pictures(), people.latents(fresh_base)
    (file,) = (tmp_path / kind).iterdir()
    before = file.read_bytes()
    damage(file)
    (tmp_path / kind / ".0123.part.safetensors").write_bytes(before[:99])  # of a process that died
    caplog.clear()
    people = found(folder, tmp_path)
    assert torch.equal(people.pictures(), pictures) and torch.equal(people.latents(fresh_base), latents)
    assert [
        line.startswith(f"{file} is cut short or damaged") for line in caplog.messages if "damaged: what" in line
    ] == [True]
    caplog.clear()
    assert torch.equal(found(folder, tmp_path).latents(fresh_base), latents)
    assert not [line for line in caplog.messages if "damaged: what" in line]
    assert not list((tmp_path / kind).glob(".*"))


def test_interrupted_it_goes_on(
    folder: Path, tmp_path: Path, fresh_base: Base, done: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_SHARD", 1)
    whole = many.crop_face

    def stopped(picture: Tensor, size: int, detector: Detector | None) -> object:
        if done["cut"] == 3:
            raise KeyboardInterrupt
        return whole(picture, size, detector)

    monkeypatch.setattr(many, "crop_face", stopped)
    with pytest.raises(KeyboardInterrupt):
        found(folder, tmp_path / "kept")
    monkeypatch.setattr(many, "crop_face", whole)
    people = found(folder, tmp_path / "kept")
    assert done["cut"] == 5
    assert torch.equal(people.pictures(), (one_by_one(folder) * 255).round().byte())


def test_one_process_reads_and_the_others_of_a_training_wait(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_COURTESY", 0.0)
    (tmp_path / "kept" / "faces").mkdir(parents=True)
    held = locked(tmp_path / "kept" / "faces" / "people.lock", UserError("held"))
    with held:
        with pytest.raises(UserError, match="another process reads people into"):
            found(folder, tmp_path / "kept")
        waiting = threading.Thread(
            target=found, args=(folder, tmp_path / "kept"), kwargs={"processes": Processes(1, 2)}
        )
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive() and len(list((tmp_path / "kept" / "faces").iterdir())) == 1


def test_nobody_to_be_seen(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(UserError, match="without a photograph"):
            found(tmp_path, tmp_path / "kept")
