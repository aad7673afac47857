"""The report of a tiny run: the tables hold the scores, the page needs no other file, faults are found first."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from hyperdreambooth.cli import evaluating
from hyperdreambooth.errors import UserError
from hyperdreambooth.evaluation.encoders import Panel
from hyperdreambooth.evaluation.prompts import PLAIN
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.report import Part, check_report, write_report
from hyperdreambooth.evaluation.scores import BASE_METHOD, CELLS, TRUE, Scoring
from hyperdreambooth.evaluation.study import make_study
from hyperdreambooth.evaluation.study_scores import Answers
from hyperdreambooth.evaluation.tables import SHARES
from tests.evaluation.test_aims import timed_quick_set
from tests.evaluation.test_scores import OURS, PHOTOGRAPHS, PORTRAITS, REFERENCES, add, begin, panel, whole


def row(text: str, name: str, after: str = "") -> list[str]:
    """The cells of the first row of that name behind a heading."""
    (line, *_) = (line for line in text[text.index(after) :].splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


class Sources(HTMLParser):
    """Collects what a page shows and refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.alts: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(known["src"] or "")
            self.alts.append(known["alt"] or "")
        self.links += [value or "" for name, value in attrs if name == "href"]


def test_the_tables_hold_the_scores(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    for seed, method in enumerate((OURS, "k-1", "dreambooth@10", "dreambooth", BASE_METHOD)):
        add(run, method, whole(seed, people=3 if method in (OURS, BASE_METHOD) else 2), seconds=seed + 1)
    scoring = Scoring(run, panel())
    scores = {one.method: one for one in scoring.all()}
    folder = tmp_path / "report"
    written = write_report([Part(scoring, list(scores.values()))], folder)
    assert written == sum(path.stat().st_size for path in folder.rglob("*.*"))
    text = (folder / "results.md").read_text()
    assert "3 portraits, 3 prompts, 4 methods and 1 more points of curves, 84 pictures; base b, hypernetwork h." in text
    assert "Not complete" not in text and "Of photographs" not in text
    labels = ((OURS, f"**{OURS}**"), ("k-1", "k-1: the first of three rounds"), (TRUE, f"*{TRUE}*"))
    for name, label in labels:
        steps, *means = row(text, label, "Table 3")
        assert steps == ("" if name == TRUE else "40")
        for measure, said in zip(CELLS, means, strict=True):
            mean = float(scores[name].cells[measure][:2].nanmean(dim=1).mean())  # of the two whom both have drawn
            assert said.startswith(f"{mean:.0%}<" if measure in SHARES else f"{mean:.3f}<")
    assert BASE_METHOD not in {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")}
    assert "Of 2 whom all of these have drawn" in text and "VGGFace2's Inception-ResNet, DINO" in text
    assert "DINO-like" not in text and "here: cpu." in text and "the background 0.25" in text
    tables, _, aims = text.partition("## What was aimed at")
    assert "out of its domain on stylised pictures" in tables.rpartition("### ")[2] and "not measured" in aims
    assert "| dreambooth |" in text and "| dreambooth@10 |" not in text
    gaps = row(text, "k-1", "## Ours against each")
    gap = float((scores[OURS].cells["face"][:2] - scores["k-1"].cells["face"]).mean())
    assert f"{gap:+.3f}" in gaps[1] and gaps[0] == "2"
    assert "made beforehand" in text.partition("## What it takes")[2]
    assert row(text, "k-1", "## What it takes")[2] == "2.00 (2.0 x)"
    assert row(text, TRUE, "does not measure")[5] == f"{scores[TRUE].attributes:.2f}"
    drift = float(scores[BASE_METHOD].own["drift"].mean())
    nobody = row(text, "nobody worn", "does not measure")
    assert nobody[0] == "3" and nobody[4].startswith(f"{drift:.3f}<")


def test_the_page_holds_everything_whatever_people_are_called(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", PHOTOGRAPHS)
    add(run, OURS, whole(1, PHOTOGRAPHS))
    half = whole(2, PHOTOGRAPHS)
    half["ann"][PLAIN].pop()
    add(run, "k-1", half)
    scoring, folder, title = Scoring(run, panel()), tmp_path / "report", "<script>Zoë</script> & *all*"
    write_report([Part(scoring, list(scoring.all()))], folder, title)
    assert {path.name for path in folder.iterdir()} == {"results.md", "results.html", "results"}
    files = {path.name for path in (folder / "results").iterdir()}
    assert files == {"time.png", "bytes.png", "gallery.jpg", "people.jpg", "sheet-1.jpg", "sheet-2.jpg"}
    text, page = ((folder / name).read_text() for name in ("results.md", "results.html"))
    assert set(re.findall(r"!\[.*\]\((.*)\)", text)) == {f"results/{name}" for name in files}
    assert text.count("Of photographs") == 1 and "3 photographs, 3 prompts" in text
    assert "Not complete, and scored as far as it goes: k-1 lacks pictures of 1 of 3 people." in text
    shown = Sources(page)
    assert len(shown.pictures) == 6 and all(source.startswith("data:image/") for source in shown.pictures)
    assert shown.links == [] and "script" not in shown.tags
    assert shown.alts[4:] == [f"{name} by every method" for name in PHOTOGRAPHS[:2]]
    assert "<title>&lt;script&gt;Zoë&lt;/script&gt; &amp; *all*</title>" in page
    assert "<h1>&lt;script&gt;Zoë&lt;/script&gt; &amp; *all*</h1>" in page


def test_photographs_are_told_behind_the_portraits_on_the_same_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"Portraits": begin(tmp_path / "a"), "Photographs": begin(tmp_path / "b", PHOTOGRAPHS)}
    for seed, (run, names) in enumerate(zip(runs.values(), (PORTRAITS, PHOTOGRAPHS), strict=True)):
        for method in (OURS, "k-1", "no-hyper", BASE_METHOD):
            add(run, method, whole(10 * seed + len(method), names))
    monkeypatch.setattr(Panel, "load", panel)
    first, second = runs.values()
    folder = tmp_path / "report"
    evaluating.report(first.path, folder, photographs=second.path, as_json=True)
    capsys.readouterr()
    text, page = ((folder / name).read_text() for name in ("results.md", "results.html"))
    portraits, _, photographs = text.partition("## Photographs")
    for heading, part in (("Portraits", portraits), ("Photographs", photographs)):
        evaluating.report(runs[heading].path, tmp_path / heading)  # alone, whose figures are the same
        alone = (tmp_path / heading / "results.md").read_text()
        tables = [line for line in alone.splitlines() if line.startswith("|")]
        assert len(tables) > 10 and tables == [line for line in part.splitlines() if line.startswith("|")]
        assert "#### Table 3" in part and f"3 {heading.lower()}, 3 prompts" in part
    assert text.index("## Portraits") < text.index("### What it takes") < text.index("## Photographs")
    pictures = {path.name for path in (folder / "results").iterdir()}
    names = {"time.png", "bytes.png", "gallery.jpg", "people.jpg", "stages.jpg", "sheet-1.jpg", "sheet-2.jpg"}
    assert pictures == names | {f"photographs-{name}" for name in names}
    shown = {f"results/{name}" for name in pictures}
    assert set(re.findall(r"!\[.*\]\((.*)\)", text)) == shown and len(Sources(page).pictures) == len(pictures)
    with pytest.raises(UserError, match=r"holds synthetic people .*, expected photographs"):
        evaluating.report(second.path, tmp_path / "other", photographs=first.path)
    with pytest.raises(UserError, match=r"cannot read .*key\.json"):
        evaluating.report(first.path, tmp_path / "other", studies=[tmp_path])


def test_a_study_of_the_run_stands_behind_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    run, folder = begin(tmp_path / "run"), tmp_path / "study"
    for seed, method in enumerate((OURS, "dreambooth")):
        add(run, method, whole(seed))
    study = make_study(run, OURS, "dreambooth", "identity", 3, 6, generator)
    folder.mkdir()
    (folder / "key.json").write_text(study.to_json())
    ours = {one.id: "left" if one.left == OURS else "right" for one in study.questions}
    (folder / "ann.json").write_text(Answers(study.id, "ann", ours).to_json())
    monkeypatch.setattr(Panel, "load", panel)
    evaluating.report(run.path, studies=[folder])
    text, page = ((run.path / "report" / name).read_text() for name in ("results.md", "results.html"))
    assert row(text, f"{OURS} against dreambooth", "## User studies")[:4] == ["people", "100.0%", "0.0%", "0.0%"]
    assert f"<td>{OURS} against dreambooth</td>" in page and "64.8 %" in page


def test_what_keeps_a_report_from_being_written_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path / "run")
    add(run, "k-1", whole(1))
    monkeypatch.setattr(Panel, "load", lambda: pytest.fail("judges were loaded"))
    for check in (check_report, lambda one: evaluating.report(one.path)):
        with pytest.raises(UserError, match=f"holds k-1, expected {OURS} among them"):
            check(run)
    add(run, OURS, {PORTRAITS[0]: {PLAIN: REFERENCES[:1]}})  # begun, not whole
    with pytest.raises(UserError, match=f"expected {OURS} among them"):
        check_report(run)
    add(run, OURS, whole(1))
    check_report(run)
    with pytest.raises(UserError, match="holds nobody who was made alone"):
        evaluating.report(run.path, times=begin(tmp_path / "times").path)
    for module, name in (("matplotlib", "matplotlib"), ("markdown_it", "markdown-it-py")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            with pytest.raises(UserError, match=rf"needs {name}, .*pip install 'hyperdreambooth\[report\]'"):
                evaluating.report(run.path)
    (run.path / "plan.json").write_text('{"format": "song"}')
    with pytest.raises(UserError, match="holds song, expected hyperdreambooth-evaluation"):
        evaluating.report(run.path)
    with pytest.raises(UserError, match="holds no run"):
        check_report(RunFolder(tmp_path))


def test_times_of_another_run_stand_in_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, times = begin(tmp_path / "run"), begin(tmp_path / "times", PORTRAITS[:1])
    for seed, (method, seconds) in enumerate({OURS: 0.5, "k-1": 0.25, "no-hyper": 0.25}.items()):
        add(run, method, whole(seed), seconds, together=3)
    add(times, OURS, {PORTRAITS[0]: {}}, 2.0)
    add(times, "k-1", {PORTRAITS[0]: {}}, 1.0)
    monkeypatch.setattr(Panel, "load", panel)
    evaluating.report(run.path, times=times.path, as_json=True)
    assert '"methods": 3' in capsys.readouterr().out
    text = (run.path / "report" / "results.md").read_text()
    said = [row(text, name, "## What it takes")[2] for name in (OURS, "k-1", "no-hyper")]
    assert said == ["2.00 (1.0 x)", "1.00 (0.5 x)", "0.25, 3 at once (-)"]


def test_the_time_of_the_quick_set_is_of_a_run_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aim = "the quick set by ours in 5 minutes, two cores"
    run, quick = begin(tmp_path / "run"), timed_quick_set(tmp_path / "quick")
    add(run, OURS, whole(1))
    monkeypatch.setattr(Panel, "load", panel)
    evaluating.report(run.path)
    assert row((run.path / "report/results.md").read_text(), aim) == ["not measured", ""]
    evaluating.report(run.path, quick=quick.path)
    assert row((run.path / "report/results.md").read_text(), aim) == ["52 s (cpu fp32, 2 threads)", "yes"]
    capsys.readouterr()
    with pytest.raises(UserError, match=rf"run holds no whole quick set by {OURS}, .*: hdb evaluate -o .*run"):
        evaluating.report(run.path, quick=run.path)
    (quick.path / "plan.json").write_text((quick.path / "plan.json").read_text().replace('"b"', '"c"'))
    with pytest.raises(UserError, match=r"got times of base c in .*quick, expected b as in"):
        evaluating.report(run.path, quick=quick.path)
