"""A run goes on wherever it was stopped, draws what the pipeline draws, and refuses another configuration."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from hyperdreambooth.baselines.dreambooth import DreamBooth
from hyperdreambooth.baselines.e4t import E4T
from hyperdreambooth.baselines.methods import CURVE, METHODS, OURS, TABLES, LiDB, costly, method_of, names_of
from hyperdreambooth.baselines.textual_inversion import TextualInversion
from hyperdreambooth.baselines.work import Method
from hyperdreambooth.cli import evaluating
from hyperdreambooth.errors import UserError, WorkError
from hyperdreambooth.evaluation import protocol, tables
from hyperdreambooth.evaluation.prompts import NOBODY, PLAIN, PROMPTS, SETS, EvaluationSet
from hyperdreambooth.evaluation.protocol import Evaluation, Share, asked
from hyperdreambooth.evaluation.records import PersonRecord, PictureRecord, RunFolder, Writer
from hyperdreambooth.evaluation.scores import load_pictures
from hyperdreambooth.evaluation.subjects import check_photographs
from hyperdreambooth.files import save_tensors
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.identity import Identity
from hyperdreambooth.people import People
from hyperdreambooth.personalization import PersonalizeConfig
from hyperdreambooth.pipeline import HyperDreamBooth

SMALL = EvaluationSet(people=3, costly_people=2, prompts=2, pictures=1, plain=2, nobody=1)
PICTURES = 4  # of each person: two plain, one in a style, one of nobody
QUICK = LiDB(PersonalizeConfig(steps=2), "left out")


@pytest.fixture
def people() -> People:
    pictures = torch.rand(3, 1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    return People(("portrait-15000", "portrait-15001", "portrait-15002"), pictures)


@pytest.fixture(autouse=True)
def always(quick_sampling: None) -> None:
    """Two steps of the sampler everywhere."""


def work(evaluation: Evaluation, method: Method = QUICK, people: int = 3, name: str = "mine") -> list[int]:
    return [progress.done for progress in evaluation.of(name, method, people)]


def test_everything_is_drawn_and_told(booth: HyperDreamBooth, people: People, tmp_path: Path) -> None:
    evaluation, began = Evaluation(booth, people, SMALL, tmp_path), time.monotonic()
    assert work(evaluation)[-1] == 3 * (1 + PICTURES)
    made, pictures = evaluation.run.people(), evaluation.run.pictures()
    assert [one.person for one in made] == list(people.names)
    assert {(one.iterations, one.samples, one.together) for one in made} == {(2, 4, 3)}
    alone = Evaluation(booth, people, SMALL, tmp_path / "alone", together=1)
    work(alone)
    assert {(one.iterations, one.samples, one.together) for one in alone.run.people()} == {(2, 4, 1)}
    files = [one.file for one in pictures]
    apart = load_pictures([tmp_path / file for file in files]) - load_pictures(
        [tmp_path / "alone" / file for file in files]
    )
    assert apart.abs().max() < 3 / 255
    assert all(one.seconds > 0 and one.bytes > 100 for one in made)
    assert all(one.seconds for one in pictures) and sum(one.seconds or 0 for one in pictures) < time.monotonic() - began
    assert sorted({one.prompt for one in pictures}) == sorted({PLAIN, NOBODY, PROMPTS[1]})
    assert len(pictures) == 3 * PICTURES and all((tmp_path / one.file).is_file() for one in pictures)
    assert all(evaluation.run.reference(name).is_file() for name in people.names)


def test_a_picture_is_what_the_kept_person_draws_alone(booth: HyperDreamBooth, people: People, tmp_path: Path) -> None:
    evaluation = Evaluation(booth, people, SMALL, tmp_path)
    work(evaluation)
    record = next(
        one for one in evaluation.run.pictures() if one.person == "portrait-15001" and one.prompt == PROMPTS[1]
    )
    person = booth.open_person(tmp_path / "people" / "mine" / "portrait-15001.safetensors")
    (question,) = (one for one in evaluation.asked if one.prompt == PROMPTS[1])
    alone = booth.draw(person, PROMPTS[1], replace(question.drawing(QUICK.drawing), seed=record.seed))
    assert (load_pictures([tmp_path / record.file]) - alone).abs().max() < 1.5 / 255
    assert len({one.seed for one in evaluation.run.pictures()}) == 3 * PICTURES  # everybody has noises of their own


@pytest.mark.parametrize("reports", [4, 12])
def test_a_stopped_run_goes_on_and_ends_the_same(
    booth: HyperDreamBooth, people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: int
) -> None:
    monkeypatch.setattr(protocol, "AT_ONCE", 2)
    whole = Evaluation(booth, people, SMALL, tmp_path / "whole")
    work(whole)
    stopped = Evaluation(booth, people, SMALL, tmp_path / "stopped")
    list(islice(stopped.of("mine", QUICK, 3), reports))
    stopped.writer.path.parent.mkdir(exist_ok=True)
    with stopped.writer.path.open("a") as shard:
        shard.write('{"kind": "pict')  # killed in the middle of a line
    before = {one.person: one for one in stopped.run.people()}
    with pytest.raises(UserError, match="another process does this share"):
        Evaluation(booth, people, SMALL, tmp_path / "stopped")
    stopped.writer.close()  # as the end of a process does
    again = Evaluation(booth, people, SMALL, tmp_path / "stopped")
    assert work(again)[-1] == 3 * (1 + PICTURES)
    assert all(one == before[one.person] for one in again.run.people() if one.person in before)  # fitted once
    files = [one.file for one in whole.run.pictures()]
    assert sorted(one.file for one in again.run.pictures()) == sorted(files)
    assert all((tmp_path / "whole" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes() for file in files)
    lines = stopped.writer.path.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 3 * (1 + PICTURES)


def test_shares_together_make_the_run(booth: HyperDreamBooth, people: People, tmp_path: Path) -> None:
    for index in range(2):
        work(Evaluation(booth, people, SMALL, tmp_path, Share(index, 2)))
    run = RunFolder(tmp_path)
    assert len(run.people()) == 3 and len(run.pictures()) == 3 * PICTURES
    assert {shard.name for shard in (tmp_path / "records").glob("*.jsonl")} == {"000.jsonl", "001.jsonl"}
    with pytest.raises(UserError, match="share 2 of 2"):
        Share(2, 2)


@pytest.mark.parametrize(
    "method",
    [
        DreamBooth(fit=FitConfig(steps=2, lr=1e-3), prior=None),
        TextualInversion(fit=FitConfig(steps=2, lr=1e-2)),
    ],
)
def test_baselines_that_replace_weights_draw_too(
    booth: HyperDreamBooth, people: People, tmp_path: Path, method: Method
) -> None:
    evaluation = Evaluation(booth, people, SMALL, tmp_path)
    work(evaluation, method, people=2)
    work(evaluation, replace(QUICK, config=replace(QUICK.config, steps=1)), people=2, name="other")
    pictures = evaluation.run.pictures()
    assert len(pictures) == 2 * 2 * PICTURES
    by_method = {name: [tmp_path / one.file for one in pictures if one.method == name] for name in ("mine", "other")}
    assert (load_pictures(by_method["mine"]) - load_pictures(by_method["other"])).abs().max() > 2 / 255


def test_another_configuration_is_refused_by_name(booth: HyperDreamBooth, people: People, tmp_path: Path) -> None:
    evaluation = Evaluation(booth, people, SMALL, tmp_path)
    work(evaluation)
    with pytest.raises(UserError, match=r"another prompts \(number 3 is \[\"a face\", .*, here \[\"a bronze"):
        Evaluation(booth, people, replace(SMALL, prompts=3), tmp_path)
    with pytest.raises(UserError, match=r"another people \(number 1 is \"portrait-15000\", here \"a\"\)"):
        Evaluation(booth, People(("a", "b", "c"), people.pictures), SMALL, tmp_path)
    with pytest.raises(UserError, match="another references"):
        Evaluation(booth, People(people.names, 1 - people.pictures), SMALL, tmp_path)
    with pytest.raises(UserError, match=r"another method \(config steps 2, here 3"):
        work(evaluation, LiDB(PersonalizeConfig(steps=3), "left out"))


def test_whoever_cannot_be_made_is_noted_and_left_out(
    booth: HyperDreamBooth, people: People, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wild = replace(QUICK, config=replace(QUICK.config, lr=float("inf")))
    evaluation = Evaluation(booth, people, SMALL, tmp_path)
    assert (
        work(evaluation, wild)[-1] == 3 * (1 + PICTURES)
        and not evaluation.run.people()
        and not evaluation.run.pictures()
    )
    assert [one.person for one in evaluation.run.failures()] == list(people.names)
    assert "goes on without" in caplog.text
    assert work(evaluation, wild) and len(evaluation.run.failures()) == 3  # not tried again
    work(evaluation, name="sound")
    assert len(evaluation.run.people()) == 3


def test_whoever_cannot_be_drawn_is_noted_and_the_others_go_on(
    booth: HyperDreamBooth, people: People, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = Evaluation(booth, people, SMALL, tmp_path)
    reports = evaluation.of("mine", QUICK, 3)
    while not evaluation.run.people():
        next(reports)
    file = tmp_path / "people" / "mine" / "portrait-15001.safetensors"
    person = booth.open_person(file)
    assert isinstance(person, Identity)
    wild = torch.full_like(person.weights, 1e30)  # finite, and nothing that they draw is
    replace(person, weights=wild).save(file, "fp32")
    assert list(reports)[-1].done == 3 * (1 + PICTURES)
    (failure,) = evaluation.run.failures()
    assert failure.person == "portrait-15001" and "not finite" in failure.reason
    assert "mine cannot draw portrait-15001" in caplog.text
    drawn = [one.person for one in evaluation.run.pictures()]
    assert set(drawn) == {"portrait-15000", "portrait-15002"} and len(drawn) == 2 * PICTURES
    evaluation.writer.close()
    assert work(Evaluation(booth, people, SMALL, tmp_path))[-1] == 3 * (1 + PICTURES)
    assert len(evaluation.run.failures()) == 1 and len(evaluation.run.pictures()) == 2 * PICTURES


def test_nobody_is_given_up_for_a_fault_of_the_disk(booth: HyperDreamBooth, people: People, tmp_path: Path) -> None:
    evaluation = Evaluation(booth, people, SMALL, tmp_path)
    (tmp_path / "people").write_text("where a folder should be")
    with pytest.raises(WorkError, match="could not write"):
        work(evaluation)
    assert not evaluation.run.failures()
    (tmp_path / "people").unlink()
    assert work(evaluation)[-1] == 3 * (1 + PICTURES) and len(evaluation.run.people()) == 3


def test_methods_say_what_they_cannot_do(booth: HyperDreamBooth) -> None:
    for name, said in (("no-hyper@0", "which only fits"), ("only-hyper@40", "hyperdreambooth@40"), ("base@1", "none")):
        with pytest.raises(UserError, match=said):
            method_of(name)
    assert costly("dreambooth@40") and costly("e4t") and not costly("hyperdreambooth@80")
    ours = METHODS[OURS].settings_on(booth)
    assert (ours["finetune"]["fit"]["lr"], ours["finetune"]["rank"]) == (
        0.01,
        4,
    )  # the preset's, though nobody named it
    for method in METHODS.values():
        said = method.settings_on(booth)
        assert json.loads(json.dumps(said)) == said
    assert METHODS["k-1"].settings_on(booth) != ours


def test_other_weights_of_e4t_are_another_method(booth: HyperDreamBooth, tmp_path: Path) -> None:
    said = []
    for number in range(2):
        file = tmp_path / f"{number}.safetensors"
        save_tensors(file, {"x": torch.full((2,), float(number))})
        said.append(E4T(network=file).settings_on(booth))
        moved = file.rename(tmp_path / f"{number}-moved.safetensors")
        assert E4T(network=moved).settings_on(booth) == said[-1]
    assert said[0] != said[1]


def test_nobody_is_drawn_as_the_base_draws(booth: HyperDreamBooth, people: People, tmp_path: Path) -> None:
    evaluation = Evaluation(booth, people, SMALL, tmp_path)
    work(evaluation, METHODS["base"], name="base")
    record = next(one for one in evaluation.run.pictures() if one.prompt == PLAIN)
    bare = booth.draw(None, PLAIN, replace(METHODS["base"].drawing, seed=record.seed, steps=2))
    assert (load_pictures([tmp_path / record.file]) - bare).abs().max() < 1.5 / 255
    assert {(one.bytes, one.samples) for one in evaluation.run.people()} == {(0, 0)}


def test_photographs_called_as_portraits_are_refused() -> None:
    check_photographs(["portrait-1", "portrait-x"])
    with pytest.raises(UserError, match="called as synthetic people"):
        check_photographs(["portrait-1", "portrait-2"])


def test_the_points_of_curves_are_drawn_where_they_are_asked_for(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"no-hyper@5", "no-hyper@80", "base"} <= set(CURVE["no-hyper"])
    monkeypatch.setitem(CURVE, "no-hyper", ("base", "no-hyper@1"))
    monkeypatch.setitem(METHODS, "no-hyper", METHODS["no-hyper"].with_steps(3))
    what = {"methods": "no-hyper@2,no-hyper", "count": 1, "base": str(base_folder)}
    for curve, more in ((False, {}), (True, {"base": 0, "no-hyper@1": 1})):
        evaluating.evaluate(tmp_path, "portraits:15000-15000", curve=curve, **what)
        made = {one.method: one.iterations for one in RunFolder(tmp_path).people()}
        assert made == {"no-hyper@2": 2, "no-hyper": 3} | more


def test_a_foreign_line_is_named(tmp_path: Path) -> None:
    writer = Writer(RunFolder(tmp_path))
    writer.write(PersonRecord("a", "b", 1, 2, 3.0, 1, 4, "cpu"), PictureRecord("a", "b", "c", 0, "d"))
    assert [type(one) for one in RunFolder(tmp_path).records()] == [PersonRecord, PictureRecord]
    with writer.path.open("a") as shard:
        shard.write('{"kind": "song"}\n')
    with pytest.raises(UserError, match="line 3, is no record"):
        list(RunFolder(tmp_path).records())
    with pytest.raises(UserError, match=r"holds no run, expected plan\.json"):
        _ = RunFolder(tmp_path).plan


def test_the_sets_and_methods_are_those_of_the_paper() -> None:
    assert len(PROMPTS) == len(set(PROMPTS)) == 30
    assert sum(one.count for one in asked(SETS["paper"]) if one.prompt != NOBODY) * SETS["paper"].people == 30_000
    assert [SETS[name].prompts for name in ("quick", "standard", "paper")] == [8, 16, 30]
    steps = {"hyperdreambooth": 40, "dreambooth": 1200, "dreambooth-agg-1": 400, "dreambooth-agg-2": 40}
    assert {name: METHODS[name].iterations for name in steps} == steps
    assert METHODS["textual-inversion"].iterations == 5000 and METHODS["only-hyper"].iterations == 0
    assert set(TABLES) <= set(METHODS)
    assert names_of(["tables", "int8-file", "k-1"]) == (*TABLES, "int8-file")
    everything = {*names_of(["tables", "ablations"])}
    assert {*tables.RANKS} - {"relaxed-full"} <= everything  # ours is that on the embedded base
    assert {*METHODS} - everything == {"independent-layers", "relaxed-full"}
    for wrong in ("magic", "hyperdreambooth@", "k-1@two"):
        with pytest.raises(UserError, match="expected one of hyperdreambooth"):
            method_of(wrong)
