from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image

from benchmarks import quality as bench
from benchmarks.judges import Judges
from hyperdreambooth.base.model import Base
from hyperdreambooth.evaluation.subjects import Subjects
from hyperdreambooth.portraits.captions import CONTEXTS, EDIT_SCENES, STYLES, Scene, caption, parse
from hyperdreambooth.portraits.pictures import in_styles


def test_both_worlds_are_measured_and_nothing_is_drawn_twice(tiny_base: Base, judges: Judges, tmp_path: Path) -> None:
    references = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    worlds = {
        "portrait": Subjects("portraits", references, (7, 8, 9)),
        "photo": Subjects("photographs", references, None),
    }
    figures = bench.quality(tiny_base, judges, worlds, 4, tmp_path)
    written = json.loads((tmp_path / "quality.json").read_text())
    assert written.pop("base") == tiny_base.fingerprint
    shares = written.pop("read where asked for")
    assert set(shares) == {"doll", "animation character"}  # the second and the fourth scene of portraits
    assert written.pop("seldom") == bench.seldom(shares)
    assert written == figures
    for world in worlds:
        assert figures[world]["pictures"] == 4 and figures[world]["true people"] == 3
        assert figures[world]["spread"] > 0 and 0 <= figures[world]["recognised"] <= 1
        with Image.open(tmp_path / f"{world}.png") as sheet:
            assert sheet.size == (2 * 8 * 16, 2 * 16)
    with mock.patch.object(bench, "_sample", side_effect=AssertionError("drawn again")):
        again = bench.quality(tiny_base, judges, worlds, 4, tmp_path)
    assert all(again[world] == pytest.approx(figures[world], abs=1e-5) for world in worlds)


def test_styles_and_places_are_counted_apart(judges: Judges) -> None:
    pictures = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scenes = bench.asked_scenes("portrait", 20)
    far = [scene for scene in scenes if scene.domain or scene.edit]
    figures, seen = bench.measured(judges, scenes, pictures, pictures)
    assert judges.scenes is not None and seen == list(judges.scenes.read(pictures))
    near, beyond = figures["styles and places"], figures["far domains and edits"]
    assert 20 * figures["recognised"] == pytest.approx((20 - len(far)) * near + len(far) * beyond)
    assert 0 < len(far) < 10


def test_what_is_read_in_fewer_than_a_third_is_seldom_drawn() -> None:
    hat, doll, beach = Scene(edit="wearing a hat"), Scene(domain="doll"), Scene(context="at the beach")
    asked = [hat] * 4 + [doll] * 3 + [beach]
    seen = [hat, Scene(edit="old"), Scene(), Scene(), doll, Scene(), Scene(), Scene()]
    shares = bench.read_shares(asked, seen)
    assert shares == {"wearing a hat": 0.25, "doll": 1 / 3, "at the beach": 0.0}
    assert bench.seldom(shares) == "wearing a hat, at the beach"
    assert bench.seldom(bench.read_shares(asked, asked)) == "" == bench.seldom(bench.read_shares([Scene()], [hat]))


def test_without_a_scene_classifier_only_the_spread_is_measured(judges: Judges) -> None:
    pictures = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    figures, seen = bench.measured(Judges(judges.recogniser), bench.asked_scenes("photo", 4), pictures, pictures)
    assert figures == {"spread": 1.0} and not seen


def test_prompts_ask_for_every_style_and_of_portraits_for_everything() -> None:
    photos, portraits = bench.asked_scenes("photo", 20), bench.asked_scenes("portrait", 60)
    assert len(photos) == 20 and {scene.style for scene in photos} == set(STYLES)
    said = {(scene.domain, scene.context, scene.edit) for scene in portraits}
    assert said == {(None, None, None)} | {(scene.domain, scene.context, scene.edit) for scene in EDIT_SCENES}
    assert all(parse(caption(scene)) == scene for scene in photos + portraits)


def test_true_pictures_repeat_people_under_the_styles_asked_for() -> None:
    references = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scenes = bench.asked_scenes("photo", 3)
    true = bench.true_pictures(Subjects("photographs", references, None), scenes)
    assert torch.equal(true[2], in_styles(references[:1], [scenes[2].style])[0])
    portraits = bench.true_pictures(Subjects("portraits", references, (7, 8)), [Scene("portrait")] * 4)
    assert (portraits[0] - portraits[2]).abs().max() > 0.1  # the same person in another view
    elsewhere, plain = (
        bench.true_pictures(Subjects("portraits", references, (7,)), [Scene("portrait", context=context)])
        for context in (CONTEXTS[0], None)
    )
    assert (elsewhere - plain).abs().max() > 0.1
