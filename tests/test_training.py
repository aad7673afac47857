"""hdb preoptimize and hdb train on photographs, and twice at once."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError
from hyperdreambooth.faces import crop_face, many, read_picture
from hyperdreambooth.faces.yunet import YuNet
from hyperdreambooth.files import load_tensors, locked
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


class TopLeft:
    """What OpenCV makes of YuNet's file: it sees one face, whatever there is."""

    def detect(self, _pixels: np.ndarray) -> tuple[int, np.ndarray]:
        return 1, np.array([[0, 0, 30, 30, 8, 12, 22, 12, 15, 18, 10, 24, 20, 24, 0.9]], dtype=np.float32)


def test_faces_are_found_by_a_network_of_ones_own(
    hdb: Hdb, tmp_path: Path, portrait_file: Path, monkeypatch: pytest.MonkeyPatch, quick_sampling: None
) -> None:
    """By everything that reads photographs of many people; and what others found is not taken for it."""
    monkeypatch.setattr("cv2.FaceDetectorYN.create", lambda *_: TopLeft())
    folder, weights, network = tmp_path / "people", tmp_path / "weights", tmp_path / "yunet.onnx"
    folder.mkdir()
    for name in ("ann", "bea", "carl", "dora"):  # whose one picture is cut once
        (folder / f"{name}.png").write_bytes(portrait_file.read_bytes())
    network.write_bytes(b"a network")
    cut = list[object]()
    found = many.crop_face
    monkeypatch.setattr(many, "crop_face", lambda *given: cut.append(given[2]) or found(*given))
    fitting = ("preoptimize", folder, "--base", hdb.base, "--steps", 1)
    hdb.json(*fitting, "-o", weights)
    assert "begun with another" in hdb(*fitting, "-o", weights, "--detector", network, status=2)[1]
    shutil.rmtree(weights)
    hdb.json(*fitting, "-o", weights, "--detector", network)
    training = ("train", folder, weights, "-o", tmp_path / "trained", "--base", hdb.base, "--preset", "tiny")
    hdb.json(*training, "--steps", 1, "--detector", network)
    assert [type(one) for one in cut] == [type(None), YuNet, YuNet]
    run = tmp_path / "run"
    hdb.json("evaluate", folder, "-o", run, "--base", hdb.base, "--methods", "no-hyper@1", "--detector", network)
    reference, picture = (read_picture(path) for path in (run / "references" / "ann.png", portrait_file))
    ours, cascades = (crop_face(picture, reference.shape[-1], who).picture for who in (YuNet(network), None))
    assert (reference - ours).abs().max() <= 0.51 / 255 < 0.1 < (reference - cascades).abs().max()
    for command in (fitting, training):
        assert "nowhere.onnx" in hdb(*command, "-o", tmp_path / "no", "--detector", "nowhere.onnx", status=2)[1]
    assert not (tmp_path / "no").exists()


def test_two_trainings_do_not_share_a_folder(hdb: Hdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, folder = tmp_path / "weights", tmp_path / "trained"
    people = ("portraits:0-3", "--base", hdb.base, "--views", 1, "--steps", 1)
    hdb.json("preoptimize", *people, "-o", weights)
    training = ("train", people[0], weights, *people[1:], "-o", folder, "--preset", "tiny", "--batch", 4)
    with locked(folder / "train.lock", UserError("taken")):
        assert hdb.json(*training, "--dry-run")["cost"]["parameters"] > 0
        with monkeypatch.context() as without:
            slow = "hyperdreambooth.cli.training.load_booth"
            without.setattr(slow, lambda *_, **__: pytest.fail("the base is opened first"))
            _, err = hdb(*training, status=2)
    assert not folder.exists()
    (line,) = err.splitlines()
    assert line.startswith(f"error: another hdb train works on {folder}, expected one at a time: wait")
    hdb.json(*training)
    assert not (folder / "train.lock").exists()
    network = (
        "evaluate",
        "-o",
        tmp_path / "run",
        "--base",
        hdb.base,
        "--hypernetwork",
        folder,
        "--methods",
        "no-hyper",
    )
    _, err = hdb(*network, "portraits:3-6", status=2)  # nobody is measured on whom it has learnt from
    assert "has learnt from 1 of the people to be measured on, such as portrait-3" in err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_the_layers_that_people_will_be_fitted_in(hdb: Hdb, tmp_path: Path) -> None:
    weights, base = tmp_path / "weights", ("--base", hdb.base)
    training = ("train", "portraits:0-1", weights, "-o", tmp_path / "trained", *base, "--preset", "tiny", "--dry-run")
    whole, rule = (hdb.json(*training, *more) for more in ((), ("--no-blocks",)))
    assert [got["network"]["blocks"] for got in (whole, rule)] == [True, False]
    assert rule["cost"]["prediction_flops"] < whole["cost"]["prediction_flops"]
    hdb.json("preoptimize", "portraits:0-1", "-o", weights, *base, "--views", 1, "--steps", 1, "--no-blocks")
    assert all(hdb.json(*training)[part] == rule[part] for part in ("network", "cost"))
    (line,) = hdb(*training, "--blocks", status=2)[1].splitlines()
    assert line == (
        "error: got --blocks for people who were fitted without the residual blocks, expected the same of both: "
        "leave it out"
    )


def test_in_bfloat16_the_hypernetwork_learns_in_it_too(hdb: Hdb, tmp_path: Path) -> None:
    weights, common = tmp_path / "weights", ("--base", hdb.base, "--precision", "bf16")
    hdb.json("preoptimize", "portraits:0-3", "-o", weights, *common, "--steps", 1)
    training = ("train", "portraits:0-3", weights, "-o", tmp_path / "trained", *common, "--preset", "tiny")
    got = hdb.json(*training, "--steps", 2, "--batch", 4, "--accumulate", 2, "--views", 1)
    assert {got["training"][phase]["precision"] for phase in ("weights", "both")} == {"bf16"}
    tensors, _ = load_tensors(tmp_path / "trained" / "hypernetwork.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    told = [json.loads(line) for line in (tmp_path / "trained" / "curve.jsonl").read_text().splitlines()]
    assert told and all(math.isfinite(line["loss"]) for line in told if "loss" in line)
    assert "leave it out" in hdb(*training, "--train-encoder", status=2)[1]


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
@pytest.mark.parametrize(
    ("command", "lock", "words"),
    [
        ("evaluate", "evaluate.lock", "another command works on all of {}, expected one: wait for it"),
        ("preoptimize", "preoptimize.lock", "another process fits people into {}, expected one at a time: wait for it"),
    ],
)
def test_a_folder_that_another_command_works_on_is_refused_before_anything_slow(
    command: str, lock: str, words: str, workers: tuple[object, ...],
    hdb: Hdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for module in ("training", "evaluating"):
        for slow in ("load_booth", "crew_of"):
            monkeypatch.setattr(f"hyperdreambooth.cli.{module}.{slow}", lambda *_, **__: pytest.fail("it goes on"))
    output = tmp_path / "out"
    with locked(output / lock, UserError("taken")):
        _, err = hdb(command, "portraits:0-1", "-o", output, "--base", hdb.base, *workers, status=2)
    (line,) = err.splitlines()
    assert line.startswith(f"error: {words.format(output)}")


def test_evaluate_takes_the_synthetic_people_who_are_named(hdb: Hdb, tmp_path: Path, quick_sampling: None) -> None:
    names = tmp_path / "list.txt"
    command = ("evaluate", "portraits:15000-15004", "-o", tmp_path / "run", "--base", hdb.base, "--methods", "base")
    names.write_text("portrait-15003\nportrait-15001\n")
    assert hdb.json(*command, "--only", names)["people"] == 2
    made = {path.stem for path in (tmp_path / "run" / "references").iterdir()}
    assert made == {"portrait-15001", "portrait-15003"}
    names.write_text("portrait-15003\nportrait-99999\n")
    assert "has no portrait-99999 (1 of 2 names" in hdb(*command, "--only", names, status=2)[1]


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
