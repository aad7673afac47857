"""Tables 4 and 5: shares worked out by hand beside the paper's, people and the automatic judge apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.study import Kind, Study, make_study
from hyperdreambooth.evaluation.study_scores import AUTOMATIC, Answers
from hyperdreambooth.evaluation.study_tables import PAPER_STUDIES, TITLES, Answered, study_tables
from tests.evaluation.test_study import OTHER, OURS, four_questions, tiny_run, write_answers


def study_of(folder: Path, kind: Kind = "identity", other: str = "dreambooth") -> Study:
    """The four questions, ours on the left of two, as of ours and that method; its key lies in the folder."""
    names, study = {OURS: "hyperdreambooth", OTHER: other}, four_questions()
    questions = tuple(replace(one, left=names[one.left], right=names[one.right]) for one in study.questions)
    study = replace(study, kind=kind, ours="hyperdreambooth", other=other, questions=questions)
    (folder / "answers").mkdir(parents=True)
    (folder / "key.json").write_text(study.to_json())
    return study


def cells(text: str, start: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_people_the_judge_and_the_paper_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    write_answers(tmp_path, study, "ann", "llru")
    write_answers(tmp_path / "answers", study, "bob", "lrrl")
    write_answers(tmp_path / "answers", study, "cas", "lrll")
    automatic = {one.id: "right" for one in study.questions}
    (tmp_path / "judge.json").write_text(Answers(study.id, AUTOMATIC, automatic).to_json())
    text = "\n".join(study_tables([Answered.open(tmp_path)]))
    assert text.startswith(f"### {TITLES['identity']}") and TITLES["style"] not in text
    # By majority: left (ours), right (the other), right (ours), left (the other).
    people = cells(text, "| hyperdreambooth against dreambooth | people |")
    assert people[2:5] == ["50.0%", "50.0%", "0.0%"] and people[5].startswith("50%<br>*") and people[6:8] == ["4", "3"]
    judge = cells(text, f"| hyperdreambooth against dreambooth | *{AUTOMATIC}* |")
    assert "not human" in AUTOMATIC and judge[2:5] == ["50.0%", "50.0%", "0.0%"] and judge[6:] == ["4", "1", ""]
    assert cells(text, "| *the paper's*")[1:5] == ["*people*", "*64.8 %*", "*23.3 %*", "*11.9 %*"]
    assert "no human" in text


def test_undecided_questions_are_a_share_and_no_vote(tmp_path: Path) -> None:
    write_answers(tmp_path, study_of(tmp_path, kind="style", other="e4t"), "ann", "lu--")
    told = cells("\n".join(study_tables([Answered.open(tmp_path)])), "| hyperdreambooth against e4t | people |")
    assert told[2:5] == ["50.0%", "0.0%", "50.0%"] and told[5].startswith("100%<br>*21% to 100%*")  # Wilson's of 1 in 1


def test_the_papers_shares_are_whole() -> None:
    assert all(sum(shares) == pytest.approx(100) for shares in PAPER_STUDIES.values())
    assert {kind for kind, _ in PAPER_STUDIES} == set(TITLES)


def test_a_study_without_answers_or_of_another_run_is_refused(tmp_path: Path, generator: torch.Generator) -> None:
    with pytest.raises(UserError, match=r"cannot read .*key\.json"):
        Answered.open(tmp_path)
    study_of(tmp_path)
    with pytest.raises(UserError, match="expected files of answers beside it"):
        Answered.open(tmp_path)
    run, folder = tiny_run(tmp_path / "run"), tmp_path / "study"
    folder.mkdir()
    study = make_study(run, OURS, OTHER, "identity", 3, 6, generator)
    (folder / "key.json").write_text(study.to_json())
    write_answers(folder, study, "ann", "lr")
    answered, another = Answered.open(folder), RunFolder(tmp_path / "another")
    answered.check([another, run])
    answered.check([run, another])
    with pytest.raises(UserError):
        answered.check([another])
