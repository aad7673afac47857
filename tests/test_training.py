"""hdb preoptimize and hdb train on photographs, and twice at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError
from hyperdreambooth.faces import many
from hyperdreambooth.files import locked
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.view import View
from hyperdreambooth.sheet import save_png, to_image
from tests.test_cli import Hdb


@pytest.fixture
def hdb(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> Hdb:
    return Hdb(base_folder, capsys)


def test_training_on_photographs_reads_and_encodes_them_once(
    hdb: Hdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, weights, trained = tmp_path / "people", tmp_path / "weights", tmp_path / "trained"
    views = [View.sample(np.random.RandomState(seed)) for seed in range(5)]
    for number, picture in enumerate(render([Person(seed) for seed in range(5)], views, 64)):
        save_png(folder / f"{number}.png", to_image(picture))
    done = Counter[str]()
    crop, encode = many.crop_face, Base.encode_pictures
    monkeypatch.setattr(many, "crop_face", lambda *given: done.update(["cut"]) or crop(*given))
    monkeypatch.setattr(Base, "encode_pictures", lambda *given: done.update(["encoded"]) or encode(*given))
    fitting = ("preoptimize", folder, "-o", weights, "--base", hdb.base, "--steps", 1)
    got = hdb.json(*fitting, "--shard", 2, "--noises", 3)
    assert got["samples"] == 5 * 3 and len(list(weights.glob("shard-?????.safetensors"))) == 3
    assert done == {"cut": 5, "encoded": 5}
    assert hdb.json(*fitting, "--shard", 2, "--noises", 3)["samples"] == 0
    for options, words in ((("--shard", 2), "objective noises 3, here 4"), (("--noises", 3), "shard 2, here 32")):
        assert f"begun with another config ({words})" in hdb(*fitting, *options, status=2)[1]
    training = ("train", folder, weights, "-o", trained, "--base", hdb.base, "--preset", "tiny", "--steps", 1)
    got = hdb.json(*training, "--batch", 6, "--accumulate", 2)
    assert got["samples"] == 6 * 2 * got["training"]["noises"] and got["training"]["weights_batch"] == 24
    assert done == {"cut": 5, "encoded": 5} and not (trained / "pictures").exists()
    for options, words in (
        (("--batch", 6), "weights accumulate 2, here 1; both accumulate 2, here 1"),
        (("--accumulate", 2), "weights_batch 24, here 128; both_batch 6, here 32"),
    ):
        assert f"begun with another config ({words})" in hdb(*training, *options, status=2)[1]
    save_png(folder / "more.png", to_image(render([Person(9)], [View()], 64)[0]))  # of whom there are no numbers
    hdb.json(*training, "-o", tmp_path / "more", "--batch", 6)
    assert done == {"cut": 6, "encoded": 6} and (tmp_path / "more" / "pictures").is_dir()


def test_two_trainings_do_not_share_a_folder(hdb: Hdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, folder = tmp_path / "weights", tmp_path / "trained"
    people = ("portraits:0-3", "--base", hdb.base, "--views", 1, "--steps", 1)
    hdb.json("preoptimize", *people, "-o", weights)
    training = ("train", people[0], weights, *people[1:], "-o", folder, "--preset", "tiny", "--batch", 4)
    with locked(folder / "train.lock", UserError("taken")), monkeypatch.context() as without:
        without.setattr("hyperdreambooth.people.read_people", lambda *_: pytest.fail("the people are read first"))
        _, err = hdb(*training, status=2)
    (line,) = err.splitlines()
    assert line.startswith(f"error: another hdb train works on {folder}, expected one at a time: wait")
    hdb.json(*training)
    assert not (folder / "train.lock").exists()
    network = ("evaluate", "-o", tmp_path / "run", "--base", hdb.base, "--hypernetwork", folder)
    _, err = hdb(*network, "portraits:3-6", status=2)  # nobody is measured on whom it has learnt from
    assert "has learnt from 1 of the people to be measured on, such as portrait-3" in err
    assert not (tmp_path / "run").exists()


def test_a_frozen_encoder_looks_once(hdb: Hdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, first, second = (tmp_path / name for name in ("weights", "first", "second"))
    people = ("portraits:0-3", "--base", hdb.base, "--views", 1, "--steps", 1)
    hdb.json("preoptimize", *people, "-o", weights)
    training = ("train", people[0], weights, *people[1:], "--preset", "tiny", "--batch", 4)
    hdb.json(*training, "-o", first)
    got = hdb.json(*training, "-o", second, "--encoder", first, "--versions", 2)
    assert got["training"]["versions"] == 2 and list((second / "pictures" / "features").glob("people-*.safetensors"))
    _, err = hdb(*training, "-o", tmp_path / "third", "--versions", 2, status=2)
    assert "--versions 2 for an encoder that is trained" in err and not (tmp_path / "third").exists()
