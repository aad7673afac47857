from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hyperdreambooth.cli.studying import study_app
from hyperdreambooth.errors import BadPicture, HyperDreamBoothError, UserError
from hyperdreambooth.evaluation.identification import Rate
from hyperdreambooth.evaluation.judges import JudgeConfig, Recogniser
from hyperdreambooth.evaluation.prompts import SETS
from hyperdreambooth.evaluation.records import FORMAT, PictureRecord, RunFolder, Writer
from hyperdreambooth.evaluation.study import Question, Study, make_study
from hyperdreambooth.evaluation.study_scores import (
    AUTOMATIC,
    Answers,
    Tally,
    automatic_answers,
    fleiss_kappa,
    majority,
    score,
)

PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"
OURS, OTHER = "method-of-ours", "another-method"
PEOPLE = ("zelda-1", "yorick-2", "xanthippe-3")
PROMPTS = ("a [V] face", "a watercolor of a [V] face", "pixel art of a [V] face", "a [V] face in the snow")
STYLED, STYLISED = PROMPTS[1:3], PROMPTS[1:]
SEEDS = 2  # pictures of each person in each prompt


def tiny_run(path: Path, methods: Sequence[str] = (OURS, OTHER), people: Sequence[str] = PEOPLE) -> RunFolder:
    """A run of random pictures: two methods, some people, four prompts; the files name their method inside too."""
    run, random = RunFolder(path), torch.Generator().manual_seed(7)

    def draw(file: Path, said: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        about = PngInfo()
        about.add_text("Comment", said)
        pixels = torch.randint(256, (64 * 64 * 3,), generator=random, dtype=torch.uint8)
        Image.frombytes("RGB", (64, 64), bytes(pixels.tolist())).save(file, pnginfo=about)

    path.mkdir(exist_ok=True)
    (path / "plan.json").write_text(json.dumps({"format": FORMAT, "methods": list(methods)}))
    writer = Writer(run)
    for person in people:
        draw(run.reference(person), person)
        for method in methods:
            for number, prompt in enumerate(PROMPTS):
                for seed in range(SEEDS):
                    file = f"pictures/{method}/{person}/{number}-{seed}.png"
                    draw(path / file, method)
                    writer.write(PictureRecord(method, person, prompt, seed, file))
    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("run"))


def four_questions() -> Study:
    """Ours is on the left of the first two questions, on the right of the others."""
    files = ("a.png", "b.png")
    sides = [(OURS, OTHER), (OURS, OTHER), (OTHER, OURS), (OTHER, OURS)]
    questions = [Question(f"q{n}", PEOPLE[0], PROMPTS[1], None, *both, *files) for n, both in enumerate(sides)]
    return Study("identity", OURS, OTHER, "salt", tuple(questions))


def write_answers(folder: Path, study: Study, who: str, choices: str) -> Path:
    """A file of answers to the first questions, a letter each, "-" for none."""
    words = {"l": "left", "r": "right", "u": "undecided"}
    given = {one.id: words[letter] for one, letter in zip(study.questions, choices, strict=False) if letter != "-"}
    path = folder / f"{who}.json"
    path.write_text(Answers(study.id, who, given).to_json())
    return path


# ------------------------------------------------------------------------------------------------------ questions


def test_every_stylised_picture_is_asked_about_once(run_folder: RunFolder, generator: torch.Generator) -> None:
    study = make_study(run_folder, OURS, OTHER, "identity", 3, 18, generator)
    files = [file for one in study.questions for file in (one.left_file, one.right_file)]
    expected = {one.file for one in run_folder.pictures() if one.prompt in STYLISED}
    assert len(files) == len(set(files)) and set(files) == expected
    for one in study.questions:
        drawn = {picture.file: picture for picture in run_folder.pictures()}
        for method, file in ((one.left, one.left_file), (one.right, one.right_file)):
            picture = drawn[file]
            assert (picture.method, picture.person, picture.prompt) == (method, one.person, one.prompt)
        assert {one.left, one.right} == {OURS, OTHER} and one.style_of is None


def test_everybody_has_as_many_questions(run_folder: RunFolder, generator: torch.Generator) -> None:
    study = make_study(run_folder, OURS, OTHER, "identity", 3, 8, generator)
    assert sorted(Counter(one.person for one in study.questions).values()) == [2, 3, 3]
    assert len({one.id for one in study.questions}) == 8
    some = make_study(run_folder, OURS, OTHER, "identity", 2, 8, generator)
    assert sorted(Counter(one.person for one in some.questions).values()) == [4, 4]


def test_a_style_is_shown_on_somebody_else(run_folder: RunFolder, generator: torch.Generator) -> None:
    study = make_study(run_folder, OURS, OTHER, "style", 3, 12, generator)
    assert {one.prompt for one in study.questions} == set(STYLED)
    assert all(one.style_of in PEOPLE and one.style_of != one.person for one in study.questions)


def test_sides_are_balanced_in_a_study_and_over_seeds(
    run_folder: RunFolder, generator_of: Callable[[int], torch.Generator]
) -> None:
    studies = [make_study(run_folder, OURS, OTHER, "identity", 3, 7, generator_of(seed)) for seed in range(60)]
    left = torch.tensor([[one.left == OURS for one in study.questions] for study in studies]).float()  # (60, 7)
    assert set(left.sum(dim=1).tolist()) == {3.0, 4.0}
    assert ((left.mean(dim=0) - 0.5).abs() < 0.25).all()  # 3.9 standard deviations
    assert len({study.id for study in studies}) == len(studies)


def test_the_same_seed_makes_the_same_study_and_the_key_keeps_it(
    run_folder: RunFolder, generator_of: Callable[[int], torch.Generator], tmp_path: Path
) -> None:
    study, again = (make_study(run_folder, OURS, OTHER, "style", 2, 4, generator_of(3)) for _ in range(2))
    assert study == again and study.id == again.id
    (tmp_path / "key.json").write_text(study.to_json())
    assert Study.open(tmp_path / "key.json") == study
    assert replace(study, ours=OTHER, other=OURS).id != study.id


def test_everybody_whom_both_drew_is_asked_about_where_nobody_says_how_many(
    run_folder: RunFolder, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, asked in ((25, 3), (2, 2)):
        monkeypatch.setattr("hyperdreambooth.evaluation.study.MOST", most)
        made = make_study(run_folder, OURS, OTHER, "identity", None, 8, generator)
        assert len({one.person for one in made.questions}) == asked


@pytest.mark.parametrize(
    ("methods", "kind", "people", "pairs", "words"),
    [
        ((OURS, "dreambooth"), "identity", 3, 6, f"dreambooth, the run .* has {OTHER}, {OURS}: choose"),
        ((OURS, OURS), "identity", 3, 6, "as both methods"),
        ((OURS, OTHER), "identity", 25, 50, "got 25 people .* has 3 .* expected at least 25"),
        ((OURS, OTHER), "identity", 3, 2, "got 2 pairs of 3 people"),
        ((OURS, OTHER), "identity", 3, 19, "got 19 pairs to ask, expected at most the 18 of 3 people"),
        ((OURS, OTHER), "style", 3, 13, "at most the 12"),
    ],
)
def test_more_than_the_run_has_is_refused(
    run_folder: RunFolder,
    generator: torch.Generator,
    methods: tuple[str, str],
    kind: str,
    people: int,
    pairs: int,
    words: str,
) -> None:
    with pytest.raises(UserError, match=words):
        make_study(run_folder, *methods, kind, people, pairs, generator)


def test_a_run_that_is_none_or_lacks_a_picture(tmp_path: Path, generator: torch.Generator) -> None:
    with pytest.raises(UserError, match=r"expected plan\.json"):
        make_study(RunFolder(tmp_path), OURS, OTHER, "identity", 3, 18, generator)
    run = tiny_run(tmp_path)
    run.reference(PEOPLE[0]).unlink()
    with pytest.raises(BadPicture, match=f"{PEOPLE[0]}.png"):
        make_study(run, OURS, OTHER, "identity", 3, 18, generator)


# ---------------------------------------------------------------------------------------------------------- scores


def test_kappa_is_that_of_the_worked_example() -> None:
    """10 subjects, 14 raters, 5 categories: 0.210."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    alone = [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert fleiss_kappa([*counts, *alone]) == fleiss_kappa(counts)  # one rater agrees with nobody


def test_kappa_at_its_ends_and_with_unequal_numbers() -> None:
    assert fleiss_kappa([[5, 0], [0, 3]]) == pytest.approx(1.0)
    assert fleiss_kappa([[1, 1], [1, 1]]) == pytest.approx(-1.0)
    # P = 1/3 and 1, so 2/3; shares 2/3, 1/3 and 0, 1, so 1/3, 2/3 and a chance of 5/9: (2/3 - 5/9) / (4/9).
    assert fleiss_kappa([[2, 1], [0, 2]]) == pytest.approx(0.25)
    assert fleiss_kappa([[4, 0], [2, 0]]) is None and fleiss_kappa([[1, 0]]) is None and fleiss_kappa([]) is None


def test_kappa_of_guesses_is_nought(generator: torch.Generator) -> None:
    votes = torch.randint(3, (4000, 5), generator=generator)
    kappa = fleiss_kappa(torch.nn.functional.one_hot(votes, 3).sum(dim=1).tolist())
    assert kappa is not None and abs(kappa) < 0.02


@pytest.mark.parametrize(
    ("left", "right", "undecided", "most"),
    [(3, 2, 0, "left"), (1, 3, 1, "right"), (2, 2, 1, "undecided"), (1, 1, 3, "undecided"), (2, 1, 2, "undecided")],
)
def test_majority(left: int, right: int, undecided: int, most: str) -> None:
    assert majority({"left": left, "right": right, "undecided": undecided}) == most


def test_scores_by_hand(tmp_path: Path) -> None:
    """Votes by question: ours 3; ours 1, other 2; ours 1, other 1, undecided 1; ours 1 alone."""
    study = four_questions()
    files = [write_answers(tmp_path, study, who, votes) for who, votes in (("a", "lllr"), ("b", "lrr-"), ("c", "lru-"))]
    result = score(study, files)
    people = result.people
    assert people and people.raters == 3 and result.automatic is None
    assert people.majorities == Tally(ours=2, other=1, undecided=1)
    assert people.answers == Tally(ours=6, other=3, undecided=1)
    assert people.majorities.decided == Rate(2, 3)
    # Left, right, undecided: agreement 1, 1/3, 0; shares (3 + 1 + 1) / 9, (2 + 1) / 9, 1 / 9.
    chance = (25 + 9 + 1) / 81
    assert people.kappa == pytest.approx((4 / 9 - chance) / (1 - chance))
    facts = people.facts()
    assert facts["majority"] == {"ours": 0.5, "other": 0.25, "undecided": 0.25}
    assert facts["decided_majority"] == {"questions": 3, "ours": 0.6667, "low": 0.2077, "high": 0.9385}


def test_undecided_all_over_has_no_interval(tmp_path: Path) -> None:
    people = score(four_questions(), [write_answers(tmp_path, four_questions(), "a", "uuuu")]).people
    assert people and people.majorities.decided is None and people.facts()["decided_majority"] is None


def test_one_participant_may_answer_in_parts(tmp_path: Path) -> None:
    study = four_questions()
    whole = score(study, [write_answers(tmp_path, study, "a", "lrul")]).people
    first = write_answers(tmp_path, study, "a", "lr").rename(tmp_path / "first.json")
    second = write_answers(tmp_path, study, "a", "--ul")
    assert score(study, [first, second]).people == whole


def test_bad_answers_are_one_clear_line_each_and_stay_as_they_are(tmp_path: Path) -> None:
    study = four_questions()
    sound = json.loads(write_answers(tmp_path, study, "a", "lrul").read_text())
    answers = sound["answers"]
    kinds: dict[str, object] = {
        "'q9', which the study does not ask": {**sound, "answers": [*answers, {"question": "q9", "choice": "left"}]},
        "q0 twice, expected once": {**sound, "answers": [*answers, answers[0]]},
        "answers study 0123, the key is of": {**sound, "study": "0123"},
        "q0 with 'maybe', expected left, right, undecided": {
            **sound,
            "answers": [{"question": "q0", "choice": "maybe"}],
        },
        "question None, which": {**sound, "answers": ["left"]},
        r"question \['q0'\], which": {**sound, "answers": [{"question": ["q0"], "choice": "left"}]},
        "no participant or no answers": {**sound, "answers": []},
        "is foreign, expected study-answers-1": {"answers": answers},
        "is JSON but no object": answers,
    }
    file = tmp_path / "bad.json"
    for words, content in kinds.items():
        file.write_text(before := json.dumps(content))
        with pytest.raises(UserError, match=rf"bad\.json.*{words}"):
            score(study, [file])
        assert file.read_text() == before
    for raw in (b'{"format": ', b"", b"\xff\xd8\xff", b"[" * 100_000):
        file.write_bytes(raw)
        with pytest.raises(UserError, match=r"bad\.json is not JSON"):
            score(study, [file])
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.json"):
        score(study, [tmp_path / "nowhere.json"])
    file.write_text(json.dumps(sound))
    with pytest.raises(UserError, match=r"bad\.json answers question q0 for participant a as .*a\.json does"):
        score(study, [tmp_path / "a.json", file])
    with pytest.raises(UserError, match=r"a\.json answers question q0 for participant a as .*a\.json does"):
        score(study, [tmp_path / "a.json"] * 2)


def test_answers_from_an_editor_that_marks_its_files(tmp_path: Path) -> None:
    path = write_answers(tmp_path, four_questions(), "a", "lrul")
    path.write_text(path.read_text(), "utf-8-sig")
    assert score(four_questions(), [path]).people


def test_bad_keys(tmp_path: Path) -> None:
    key, sound = tmp_path / "key.json", json.loads(four_questions().to_json())
    for words, content in (
        ("is study-answers-1, expected hyperdreambooth-study-1", {"format": "study-answers-1"}),
        ("was changed", {**sound, "ours": OTHER, "other": OURS}),
        ("was changed", {**sound, "questions": [{"id": "q0"}]}),
        ("was changed", {"format": sound["format"]}),
    ):
        key.write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"key\.json {words}.*give the key\.json"):
            Study.open(key)


# ------------------------------------------------------------------------------------------------ automatic judge


class Likeness(Recogniser):
    """Knows by the mean colour of a picture."""

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(pictures.mean(dim=(2, 3)), dim=1)


def test_the_automatic_judge_takes_the_nearer_one(tmp_path: Path, generator: torch.Generator) -> None:
    run = tiny_run(tmp_path / "run")
    for person, colour in zip(PEOPLE, ("red", "lime", "blue"), strict=True):
        Image.new("RGB", (64, 64), colour).save(run.reference(person))
        for picture in run.pictures():
            if picture.person == person:
                near = picture.method == OURS or picture.prompt == PROMPTS[3]  # in the snow both are alike
                Image.new("RGB", (64, 64), colour if near else "white").save(run.path / picture.file)
    study = make_study(run, OURS, OTHER, "identity", 3, 18, generator)
    given = automatic_answers(study, run, Likeness(JudgeConfig(16, (8, 8), 4)))
    for one in study.questions:
        choice = {"left": one.left, "right": one.right}.get(given.choices[one.id], "undecided")
        assert choice == ("undecided" if one.prompt == PROMPTS[3] else OURS)
    (tmp_path / "judge.json").write_text(given.to_json())
    person = write_answers(tmp_path, study, "a", "l" * 18)
    both = score(study, [person, tmp_path / "judge.json"])
    assert both.people == score(study, [person]).people
    assert both.automatic and both.automatic.answers == Tally(12, 0, 6) and both.automatic.kappa is None
    Image.new("RGB", (64, 64), "black").save(run.path / study.questions[5].left_file)
    with pytest.raises(UserError, match="holds another picture than the study's"):
        automatic_answers(study, run, Likeness(JudgeConfig(16, (8, 8), 4)))


# ---------------------------------------------------------------------------------------------------- command line


def command(*arguments: object) -> None:
    study_app([str(argument) for argument in arguments], standalone_mode=False)


def test_from_a_run_to_scores(run_folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, judged = tmp_path / "study", tmp_path / "judge.json"
    methods = ("--ours", OURS, "--other", OTHER)
    command("make", run_folder.path, "-o", study, *methods, "--people", 3, "--pairs", 12, "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["bytes"] == (study / "page.html").stat().st_size
    assert "note:" in err and "show page.html alone" in err
    key = Study.open(study / "key.json")
    command("judge", study / "key.json", run_folder.path, "-o", judged, "--json")
    assert (
        json.loads(capsys.readouterr().out)["participant"] == AUTOMATIC == json.loads(judged.read_text())["participant"]
    )
    files = [judged, *(write_answers(tmp_path, key, who, "lr" * 6) for who in "ab")]
    command("score", study / "key.json", *files, "--json")
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert "automatic judge (not human)" in err
    assert facts["people"]["raters"] == 2 and facts["people"]["fleiss_kappa"] == 1.0
    assert facts["automatic_judge_not_human"]["answers"] == 12
    command("score", study / "key.json", judged)
    assert "automatic judge not human" in capsys.readouterr().err
    with pytest.raises(HyperDreamBoothError, match="of another study"):
        command("make", run_folder.path, "-o", study, *methods, "--people", 2, "--pairs", 6)
    assert Study.open(study / "key.json") == key


def test_the_command_of_the_page_makes_a_study_of_a_quick_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = (one for one in PAGE.read_text().splitlines() if one.startswith("    hdb study make"))
    words = shlex.split(line, comments=True)
    monkeypatch.chdir(tmp_path)
    given = dict(pairwise(words))
    people = [f"portrait-{number}" for number in range(SETS["quick"].people)]
    Path(given["make"]).parent.mkdir()
    tiny_run(Path(given["make"]), (given["--ours"], given["--other"]), people)
    command(*words[2:], "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["people"] == len(people) and Path(facts["page"]).is_file() and Path(facts["key"]).is_file()
