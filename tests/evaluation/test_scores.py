"""Scores of a tiny run whose pictures are plain colours, against the same worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hyperdreambooth.errors import BadPicture, UserError
from hyperdreambooth.evaluation import scores as scores_module
from hyperdreambooth.evaluation.attributes import attribute_error
from hyperdreambooth.evaluation.drawn import Drawn, alone_seconds
from hyperdreambooth.evaluation.encoders import Encoders, Panel
from hyperdreambooth.evaluation.prompts import NOBODY, PLAIN
from hyperdreambooth.evaluation.protocol import METHOD_FORMAT
from hyperdreambooth.evaluation.records import (
    FORMAT,
    METHODS,
    FailureRecord,
    PersonRecord,
    PictureRecord,
    RunFolder,
    Writer,
)
from hyperdreambooth.evaluation.scores import TRUE, Scores, Scoring
from hyperdreambooth.evaluation.subjects import Subjects, subjects_of
from hyperdreambooth.fitting.plan import keep_plan
from hyperdreambooth.portraits.captions import Scene, parse
from hyperdreambooth.portraits.person import truth_matrix
from hyperdreambooth.progress import Progress

OURS, SIDE = "hyperdreambooth", 16
BLUE, BEACH = "a watercolor of a [V] face", "a [V] face at the beach"
PROMPTS = {PLAIN: 3, BLUE: 1, BEACH: 1, NOBODY: 2}  # and how many pictures of each person
PORTRAITS, PHOTOGRAPHS = ("portrait-15000", "portrait-15001", "portrait-15002"), ("Zoë & Bob 1", "ann", "cas")
Colour = tuple[int, int, int]
REFERENCES: tuple[Colour, ...] = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
TEXTS = {"a face": (1.0, 0.0, 0.0), "a watercolor of a face": (0.0, 0.0, 1.0), "a face at the beach": (0.0, 1.0, 0.0)}


@dataclass
class Colours:
    """A network that sees the mean colour of a picture, so often: the width of its embeddings is 3 x `times`."""

    times: int = 1

    def embed(self, pictures: Tensor) -> Tensor:
        colours = pictures.mean(dim=(2, 3)).repeat(1, self.times)  # (N, 3 times)
        return colours / colours.norm(dim=1, keepdim=True)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([TEXTS[text] for text in texts])


class Blueness:
    """A scene classifier to whom all that is blue is a watercolour."""

    def read(self, pictures: Tensor) -> list[Scene]:
        return [Scene(style="watercolor" if one.mean(dim=(1, 2)).argmax() == 2 else "plain") for one in pictures]


class Redness:
    """A reader to whom every attribute is as much as a picture is red."""

    def read(self, pictures: Tensor) -> Tensor:
        return pictures[:, 0].mean(dim=(1, 2)).unsqueeze(1).expand(-1, truth_matrix([0]).shape[1])


def panel(times: int = 1) -> Panel:
    """Judges who see colours; the face recogniser's embeddings are so many times as wide as the others'."""
    encoders = Encoders(face=Colours(times), dino=Colours(), clip=Colours())
    return Panel(encoders, cast(Any, Blueness()), cast(Any, Redness()))


def paint(path: Path, colour: Colour, side: int = SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)


def begin(folder: Path, names: Sequence[str] = PORTRAITS, **changed: object) -> RunFolder:
    """A run without any method."""
    prompts = [[prompt, count, 1000 * number] for number, (prompt, count) in enumerate(PROMPTS.items())]
    plan = {"format": FORMAT, "base": "b", "hypernetwork": "h", "people": list(names), "prompts": prompts, **changed}
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    for name, colour in zip(names, REFERENCES, strict=False):
        paint(run.reference(name), colour)
    return run


def colours_of(seed: int, person: int) -> dict[str, list[Colour]]:
    """Colours of all pictures of one person, near to the reference's."""
    random = np.random.RandomState(100 * seed + person)
    near = np.array(REFERENCES[person])
    return {
        prompt: [cast(Colour, tuple(map(int, (near + random.randint(-40, 56, 3)).clip(0, 255)))) for _ in range(count)]
        for prompt, count in PROMPTS.items()
    }


def add(
    run: RunFolder,
    method: str,
    people: Mapping[str, Mapping[str, Sequence[Colour]]],
    seconds: float = 2.0,
    together: int = 1,
    machine: str = "cpu",
) -> None:
    """Make people by a method, and paint their pictures."""
    writer = Writer(run)
    for name, prompts in people.items():
        writer.write(PersonRecord(method, name, 40, 80, seconds, together, 1000, machine))
        for number, (prompt, colours) in enumerate(prompts.items()):
            for seed, colour in enumerate(colours):
                file = f"pictures/{method}/{name}/{number}-{seed}.png"
                paint(run.path / file, colour)
                writer.write(PictureRecord(method, name, prompt, seed, file))
    writer.close()


def whole(seed: int, names: Sequence[str] = PORTRAITS, people: int = 3) -> dict[str, dict[str, list[Colour]]]:
    """All pictures of the first people."""
    return {name: colours_of(seed, number) for number, name in enumerate(names[:people])}


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def flat_ssim(one: float, other: float) -> float:
    """Of two pictures of one grey each, by their brightness alone."""
    return (2 * one * other + 1e-4) / (one * one + other * other + 1e-4)


def subjects(names: Sequence[str] = PORTRAITS) -> Subjects:
    flat = torch.tensor(REFERENCES).float() / 255
    return subjects_of(names, flat[:, :, None, None].expand(-1, -1, SIDE, SIDE))


def gallery(prompt: str, names: Sequence[str] = PORTRAITS) -> list[list[float]]:
    """Of everybody, the mean of the directions of the true views' colours."""
    views = subjects(names).true_views(parse(prompt)).mean(dim=(3, 4))  # (V, N, 3)
    found: list[list[float]] = (views / views.norm(dim=2, keepdim=True)).mean(dim=0).tolist()
    return found


def test_every_measure_of_a_person_and_prompt(tmp_path: Path) -> None:
    run = begin(tmp_path)
    drawn = whole(1)
    add(run, OURS, drawn)
    scores = Scoring(run, panel()).of(OURS)
    assert scores.people.tolist() == [0, 1, 2] and scores.cells["face"].shape == (3, 3)
    for person, colours in enumerate(drawn.values()):
        reference = REFERENCES[person]
        for column, prompt in enumerate((PLAIN, BLUE, BEACH)):
            said = prompt.replace("[V] ", "")
            likeness = mean([cosine(colour, reference) for colour in colours[prompt]])
            rights, firsts, scenes = [], [], []
            for colour in colours[prompt]:
                near = [cosine(colour, one) for one in gallery(prompt)]
                rights.append(near.index(max(near)) == person)
                fits = {text: cosine(colour, vector) for text, vector in TEXTS.items()}
                firsts.append(max(fits, key=lambda text: fits[text]) == said)
                blue = max(colour) == colour[2]
                scenes.append(not blue if prompt == PLAIN else blue and prompt == BLUE)  # nothing reads a beach
            expected = {
                "face": likeness,
                "dino": likeness,
                "clip_i": likeness,
                "clip_t": mean([cosine(colour, TEXTS[said]) for colour in colours[prompt]]),
                "identified": mean(rights),
                "scene": mean(scenes),
                "prompt_first": mean(firsts),
            }
            got = {name: float(cells[person, column]) for name, cells in scores.cells.items()}
            assert got == pytest.approx(expected, abs=1e-5)
        a, b, c = colours[PLAIN]
        assert float(scores.own["diversity"][person]) == pytest.approx(
            1 - mean([cosine(a, b), cosine(a, c), cosine(b, c)]), abs=1e-5
        )
        grey = [mean(colour) / 255 for colour in (a, b, c)]
        alike = [flat_ssim(*pair) for pair in combinations(grey, 2)]  # of pictures of one colour
        assert float(scores.own["framing"][person]) == pytest.approx(1 - mean(alike), abs=1e-5)
        copied = mean([flat_ssim(one, mean(reference) / 255) for one in grey])
        assert float(scores.own["copied"][person]) == pytest.approx(copied, abs=1e-5)
        drift = mean([cosine(colour, reference) for colour in colours[NOBODY]])
        assert float(scores.own["drift"][person]) == pytest.approx(drift, abs=1e-5)
    reds = torch.tensor([colour[0] / 255 for colours in drawn.values() for colour in colours[PLAIN]])
    truth = truth_matrix([15000, 15001, 15002]).repeat_interleave(3, dim=0)
    assert scores.attributes == pytest.approx(attribute_error(reds[:, None].expand_as(truth), truth))


def test_a_prompt_with_many_pictures_counts_once(tmp_path: Path) -> None:
    run = begin(tmp_path)
    red, green = REFERENCES[:2]
    add(run, OURS, {PORTRAITS[0]: {PLAIN: [red] * 3, BLUE: [green], BEACH: [green], NOBODY: [red] * 2}})
    face = Scoring(run, panel()).of(OURS).measures["face"]
    assert float(face[0]) == pytest.approx((1 + 2 * cosine(green, red)) / 3, abs=1e-6)


def test_only_whole_cells_are_scored(tmp_path: Path) -> None:
    run = begin(tmp_path)
    half = whole(1)
    half[PORTRAITS[0]][PLAIN].pop()
    half[PORTRAITS[1]] = {prompt: half[PORTRAITS[1]][prompt] for prompt in (PLAIN, BLUE)}
    half[PORTRAITS[2]] = {}  # made, not drawn
    add(run, OURS, half)
    add(run, "k-1", {PORTRAITS[0]: {PLAIN: half[PORTRAITS[0]][PLAIN]}})
    Writer(run, 1).write(FailureRecord("e4t", PORTRAITS[0], "no room"))
    drawn = Drawn(run)
    assert drawn.methods == [OURS] and drawn.begun == [OURS, "k-1", "e4t"]
    assert drawn.incomplete(OURS) == (3, 3) and drawn.incomplete("k-1") == (1, 1) and len(drawn.failed["e4t"]) == 1
    scores = Scoring(run, panel()).of(OURS)
    assert scores.people.tolist() == [0, 1]
    assert scores.cells["face"].isnan().tolist() == [[True, False, False], [False, False, True]]
    assert scores.own["diversity"].isnan().tolist() == [True, False]
    assert scores.own["drift"].isnan().tolist() == [False, True]
    assert scores.attributes is None  # of one person
    for whole_one in scores.measures["face"]:
        assert not whole_one.isnan()
    with pytest.raises(UserError, match=f"no whole set of pictures of k-1, expected one of {OURS}"):
        Scoring(run, panel()).of("k-1")


def test_the_gallery_is_seen_by_the_encoder_of_the_faces(tmp_path: Path) -> None:
    """A recogniser of another width judges as well: nothing is left of the one that ships."""
    run = begin(tmp_path)
    add(run, OURS, whole(1))
    narrow, wide = Scoring(run, panel()).of(OURS), Scoring(run, panel(times=2)).of(OURS)
    for name, cells in narrow.cells.items():
        assert torch.allclose(cells, wide.cells[name], atol=1e-6)


def test_true_pictures_of_portraits_are_in_every_prompt(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add(run, OURS, whole(1))
    true, *_ = Scoring(run, panel()).all()
    assert true.method == TRUE and true.seconds is None and true.attributes is not None
    for column, prompt in enumerate((PLAIN, BLUE, BEACH)):
        colours = subjects().true_views(parse(prompt), count=4)[-1].mean(dim=(2, 3)).tolist()
        expected = [cosine(colour, own) for colour, own in zip(colours, REFERENCES, strict=True)]
        assert true.cells["face"][:, column].tolist() == pytest.approx(expected, abs=1e-5)
    assert true.own["drift"].isnan().all()
    views = subjects().true_views(parse(PLAIN), count=4).mean(dim=(3, 4))  # (V, N, 3)
    for row, own in enumerate(views.transpose(0, 1).tolist()):
        apart = [1 - cosine(own[i], own[j]) for i in range(4) for j in range(i)]
        assert float(true.own["diversity"][row]) == pytest.approx(sum(apart) / 6, abs=1e-5)
    assert (true.own["framing"] > 0).all()


def test_of_photographs_nothing_but_styles_is_known(tmp_path: Path) -> None:
    run = begin(tmp_path, PHOTOGRAPHS)
    add(run, OURS, whole(1, PHOTOGRAPHS))
    scoring = Scoring(run, panel())
    true, ours = scoring.all()
    assert scoring.subjects.seeds is None and ours.attributes is None
    for name, cells in true.cells.items():
        assert cells.isnan().tolist() == [[False, False, True]] * 3, name
    for name, cells in ours.cells.items():
        assert cells.isnan().tolist() == [[False, False, name in ("scene", "identified")]] * 3, name


def test_costs_are_of_people_alone_where_those_are_known(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    add(run, OURS, whole(1), seconds=0.5, together=3)
    add(run, "k-1", whole(2), seconds=0.25, together=3)
    times = begin(tmp_path / "times", PORTRAITS[:2])
    add(times, OURS, {PORTRAITS[0]: {}}, seconds=4)
    add(times, OURS, {PORTRAITS[1]: {}}, seconds=2)
    add(times, "k-1", {PORTRAITS[0]: {}}, seconds=9, together=2)
    alone = alone_seconds(times, run)
    assert alone == {OURS: (3.0, "cpu", 2)}
    scoring = Scoring(run, panel(), alone)

    def told(one: Scores) -> tuple[object, ...]:
        return one.iterations, one.samples, one.seconds, one.together, one.bytes, one.machine

    assert told(scoring.of(OURS)) == (40, 80, 3.0, 1, 1000, "cpu")
    assert told(scoring.of("k-1")) == (40, 80, 0.25, 3, 1000, "cpu")
    add(run, "k-1", {PORTRAITS[0]: {}}, together=3, machine="NVIDIA H100 bf16")
    assert Scoring(run, panel()).of("k-1").machine is None  # some here, some there
    for number, of in enumerate((times, run)):
        keep_plan(of.path / METHODS / OURS, {"format": METHOD_FORMAT, "method": {"lr": number}}, {})
    with pytest.raises(UserError, match=f"times of {OURS} in .* with other settings"):
        alone_seconds(times, run)
    with pytest.raises(UserError, match=r"nobody who was made alone, expected a run of hdb evaluate --together 1"):
        alone_seconds(run, run)
    with pytest.raises(UserError, match=r"times of base another in .* expected b"):
        alone_seconds(begin(tmp_path / "other", base="another"), run)


def test_pictures_are_judged_a_few_at_a_time_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path)
    add(run, OURS, whole(1))
    at_once = Scoring(run, panel()).of(OURS)
    monkeypatch.setattr(scores_module, "_BATCH", 2)
    largest, loaded = [0], scores_module.load_pictures

    def counting(files: Sequence[Path]) -> Tensor:
        largest.append(len(files))
        return loaded(files)

    scoring, reports = Scoring(run, panel()), list[Progress]()
    monkeypatch.setattr(scores_module, "load_pictures", counting)
    _, few = scoring.all(reports.append)
    assert max(largest) == 2 and len(largest) > 10
    for name, cells in at_once.cells.items():
        assert torch.allclose(cells, few.cells[name], atol=1e-6)
    done = [one.done for one in reports]
    assert {one.total for one in reports} == {3 * 3 + 3 * 7} and done == sorted(done) and done[-1] == 30
    assert max(after - before for before, after in pairwise(done)) <= 2


def test_what_is_no_sound_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        Drawn(RunFolder(tmp_path))
    for number, (changed, words) in enumerate(
        [
            ({"format": "hyperdreambooth-weights-1"}, "holds hyperdreambooth-weights-1, expected hyperdreambooth-eval"),
            ({"prompts": 3}, "is damaged"),
            ({"prompts": [["a face"]]}, "is damaged"),
            ({"people": []}, "is damaged"),
            ({"prompts": [[NOBODY, 1, 0]]}, "is damaged"),
        ]
    ):
        with pytest.raises(UserError, match=words):
            Drawn(begin(tmp_path / str(number), **changed))
    run = begin(tmp_path / "cut")
    (run.path / "plan.json").write_text('{"format": ')
    with pytest.raises(UserError, match="cannot be read"):
        Drawn(RunFolder(run.path))
    run = begin(tmp_path / "foreign")
    add(run, OURS, {"Eve": {PLAIN: [REFERENCES[0]]}})
    with pytest.raises(UserError, match=r"a picture of Eve .* does not ask for"):
        Drawn(run)


def test_a_picture_of_another_size_is_named(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add(run, OURS, whole(1))
    paint(run.path / f"pictures/{OURS}/{PORTRAITS[0]}/0-1.png", REFERENCES[0], side=24)
    with pytest.raises(BadPicture, match=r"0-1\.png is 24 x 24 pixels, expected 16 x 16"):
        Scoring(run, panel()).of(OURS)


def test_scores_can_be_replaced(tmp_path: Path) -> None:
    """The means follow the cells."""
    run = begin(tmp_path)
    add(run, OURS, whole(1))
    scores = Scoring(run, panel()).of(OURS)
    before = scores.measures["face"]
    doubled = replace(scores, cells={name: 2 * cells for name, cells in scores.cells.items()})
    assert torch.equal(doubled.measures["face"], 2 * before)
