from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import first_light as bench
from benchmarks.judges import Judges
from benchmarks.kept import kept
from benchmarks.score import OURS, ROUND_TRIP, TRUE, TUNED_ALONE, Score, as_json, score, table
from benchmarks.subjects import photographs, portraits
from hyperdreambooth import HyperDreamBooth, PersonalizeConfig
from hyperdreambooth.base.model import Base
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.errors import BadFile, UserError
from hyperdreambooth.evaluation.identification import Rate
from hyperdreambooth.evaluation.subjects import Subjects
from hyperdreambooth.files import save_tensors
from hyperdreambooth.hypernetwork.model import PRESETS, HyperNetwork, build_hypernetwork
from hyperdreambooth.portraits.captions import STYLES, Scene


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    return portraits("tuning", 4, 16)


@pytest.fixture
def booth(fresh_base: Base) -> HyperDreamBooth:
    booth = HyperDreamBooth(fresh_base)
    booth.hypernetwork = build_hypernetwork(PRESETS["tiny"], booth.space, booth.fingerprint)
    return booth


WAYS = bench.ways  # as they are


def test_the_ways_are_those_of_the_table(booth: HyperDreamBooth) -> None:
    def steps(network: HyperNetwork | None, long_fit: bool) -> dict[str, tuple[bool, int]]:
        found = WAYS(network, long_fit)
        assert all(way.drawing == DrawConfig() and way.config.noises == 2 for way in found.values())
        return {name: (way.hypernetwork is not None, way.config.steps) for name, way in found.items()}

    alone = {"fine-tuning alone": (False, 40)}
    assert steps(None, False) == alone
    assert steps(None, True) == alone | {"200 steps alone": (False, 200)}
    assert steps(booth.hypernetwork, False) == alone | {"hypernetwork alone": (True, 0), "ours": (True, 40)}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of fine-tuning, one of the sampler, three people at once, one view in the gallery."""
    one = {bench.TUNED_ALONE: (False, 1), bench.HYPER_ALONE: (True, 0), bench.OURS: (True, 1)}
    monkeypatch.setattr(bench, "BATCH", 3)
    monkeypatch.setattr(
        bench,
        "ways",
        lambda network, _long: {
            name: bench.Way(network if predicted else None, PersonalizeConfig(steps=steps), DrawConfig(steps=1))
            for name, (predicted, steps) in one.items()
        },
    )


def test_every_row_and_nothing_made_twice(
    booth: HyperDreamBooth, judges: Judges, subjects: Subjects, tmp_path: Path
) -> None:
    one = bench.first_light(booth, judges, [subjects], tmp_path, "tuning", speed=lambda _booth: {"seconds": 1.0})
    assert json.loads((tmp_path / "tuning.json").read_text()) == json.loads(json.dumps(one))
    rows = one["portraits"]
    assert isinstance(rows, dict)
    assert list(rows) == [TRUE, ROUND_TRIP, TUNED_ALONE, bench.HYPER_ALONE, OURS, f"{OURS} minus {TUNED_ALONE}"]
    for row in list(rows.values())[:-1]:
        assert (row["people"], row["pictures"], list(row["by_style"])) == (4, 32, list(STYLES))
        assert 0 <= row["interval"][0] <= row["identification"] <= row["interval"][1] <= 1
        assert {"style_recognised", "attribute_error"} <= set(row)
    assert one["speed"] == {"seconds": 1.0} and one["base"] == booth.fingerprint
    with mock.patch.object(bench, "_draw", side_effect=AssertionError("drawn again")):
        assert bench.first_light(booth, judges, [subjects], tmp_path, "tuning", speed=None)["portraits"] == rows
        way = bench.ways(booth.hypernetwork, False)[OURS]
        with torch.no_grad():
            next(booth.hypernetwork.parameters()).add_(1.0)  # type: ignore[union-attr]
        with pytest.raises(AssertionError, match="drawn again"):  # another hypernetwork: not the same pictures
            bench.drawn_people(booth, OURS, way, subjects, tmp_path / "tuning" / "portraits" / OURS)


def test_a_judge_who_is_missing_leaves_a_row_out(judges: Judges, subjects: Subjects) -> None:
    galleries = {style: subjects.gallery(judges.recogniser, Scene(style=style)) for style in STYLES}
    true = torch.stack([subjects.true_picture(style) for style in STYLES])
    full = score(subjects, true, judges, galleries)
    less = score(subjects, true, replace(judges, attributes=None), galleries)
    none = score(subjects, true, Judges(judges.recogniser), galleries)
    assert less.attributes is None and less.style == full.style and torch.equal(less.hits, full.hits)
    rows = {table("portraits", {"way": value}).row_count for value in (full, less, none)}
    assert rows == {2 + len(STYLES) + extra for extra in (2, 1, 0)}
    assert "style_recognised" not in as_json({"row": none})["row"]  # type: ignore[operator]


def test_judges_are_loaded_from_their_folder(judges: Judges, tmp_path: Path) -> None:
    with pytest.raises(BadFile):
        Judges.load(tmp_path)
    judges.recogniser.save(tmp_path / "recogniser.safetensors")
    assert Judges.load(tmp_path).scenes is None and Judges.load(tmp_path).attributes is None


def test_intervals_count_people_not_pictures() -> None:
    hits = torch.zeros(8, 10, dtype=torch.bool)
    hits[:, :5] = True
    assert Score(hits, None, None).share == 0.5 and Score(hits, None, None).interval == Rate(5, 10).interval


def test_ours_is_compared_person_by_person() -> None:
    hits = torch.zeros(8, 10, dtype=torch.bool)
    hits[:, :5] = True
    both = {TUNED_ALONE: Score(torch.zeros_like(hits), None, None), OURS: Score(hits, None, None)}
    result = as_json(both)
    gap = result[f"{OURS} minus {TUNED_ALONE}"]
    # Eight equal probes of each of ten people are worth ten trials, whose standard error is 0.5 / 3 with nine degrees.
    assert gap["difference"] == 0.5  # type: ignore[index]
    assert gap["interval"] == pytest.approx((0.5 - 2.26 / 6, 0.5 + 2.26 / 6), abs=0.08)  # type: ignore[index]
    shown, (low, high) = list(table("portraits", both).columns[2].cells)[-1], gap["interval"]  # type: ignore[index]
    assert shown == f"+50.0 ({100 * low:+.1f} to {100 * high:+.1f})"
    few = {name: Score(one.hits[:, 3:7], None, None) for name, one in both.items()}
    assert as_json(few)[f"{OURS} minus {TUNED_ALONE}"] == {"difference": 0.5, "interval": None}
    assert list(table("portraits", few).columns[2].cells)[-1] == "+50.0 (too few people)"


def test_kept_pictures_are_made_again_only_of_something_else(tmp_path: Path) -> None:
    path, first, other = tmp_path / "a.safetensors", torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    made = kept(path, {"of": "this"}, lambda: first)
    assert torch.allclose(made, first, atol=0.5 / 255 + 1e-6)
    assert torch.equal(kept(path, {"of": "this"}, lambda: other), made)
    assert torch.allclose(kept(path, {"of": "that"}, lambda: other), other, atol=0.5 / 255 + 1e-6)


def test_a_perfect_drawer_of_photographs_is_not_the_gallery_itself(judges: Judges, tmp_path: Path) -> None:
    path, names = tmp_path / "photographs.safetensors", "sfhq/sample_2x4_003.jpg\nown/1.jpg"
    save_tensors(path, {"pictures": torch.randint(256, (2, 3, 24, 24), dtype=torch.uint8)}, {"names": names})
    people = photographs(path, "tuning", 100, 16)
    assert people.references.shape == (1, 3, 16, 16) and people.truth is None
    assert not torch.equal(people.another_picture("plain"), people.true_picture("plain"))
    assert torch.equal(
        people.gallery(judges.recogniser, Scene(style="neon")), judges.recogniser.embed(people.true_picture("neon"))
    )
    with pytest.raises(UserError, match="no reporting photographs"):
        photographs(path, "reporting", 100, 16)
    with pytest.raises(UserError, match="1 to the 100"):
        portraits("reporting", 101, 16)
