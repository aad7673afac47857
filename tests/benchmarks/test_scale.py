"""The plan on paper, against its formulas worked out here."""

import json
import re
import sys
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import cluster_simulation, scale
from benchmarks.counts import counts
from benchmarks.scale import (
    Assumed,
    at_shares,
    beforehand,
    identity_bytes,
    needed_for_aims,
    preoptimised,
    prices,
    schedules,
    sd15_space,
    served,
    shard_seconds,
    trained,
    training,
)
from hyperdreambooth.base.single_file import LAYOUTS
from hyperdreambooth.lidb import LiDBSpace

DOCS = Path(__file__).parents[2] / "docs"
STABLE_DIFFUSION = DOCS / "stable-diffusion.md"
PAGE, COMMITTED = DOCS / "scale.md", DOCS / "sd15-counts.json"

COUNTED = {
    "U-Net (parameters)": 800e6,
    "text encoder (parameters)": 100e6,
    "VAE (parameters)": 100e6,
    "a person's step of 4 noises (GFLOP)": 7000.0,
    "a person's step of 4 noises, kept in float32 (bytes)": 20e9,
    "a person's step of 1 noise (GFLOP)": 1800.0,
    "a step of fine-tuning, 1 noise (GFLOP)": 1400.0,
    "prediction, 3 rounds (GFLOP)": 400.0,
    "VAE, encode (GFLOP)": 1100.0,
    "VAE, decode (GFLOP)": 2500.0,
    "guided step (GFLOP)": 1600.0,
    "training on weights, a step (GFLOP)": 80e3,
    "training on weights (steps)": 3000,
    "training on weights, kept in float32 (bytes)": 30e9,
    "training on both, a step (GFLOP)": 190e3,
    "training on both (steps)": 2000,
    "training on both, kept in float32 (bytes)": 170e9,
    "hypernetwork in float32 (bytes)": 3e9,
    "gradient, moments and average of these (bytes)": 1e9,
}
ASSUMED = Assumed(peak=700e12, share=0.5, price=2.0, people=640, served=1000)


@pytest.fixture(scope="module")
def space() -> LiDBSpace:
    return sd15_space()


def test_bytes_of_a_person_are_the_numbers_and_a_little(space: LiDBSpace) -> None:
    rule, blocks, up = 192, 80, 48
    for ranks, sites in ((0, rule), (1, rule + blocks), (11, rule + blocks + 10 * up)):
        numbers = sites * 150  # 112,800 of the last
        assert 0 < identity_bytes(space, ranks, "fp16") - 2 * numbers < 3000
        scales = 2 * 2 * numbers // 150
        assert 0 < identity_bytes(space, ranks, "int8") - numbers - scales < 3000
    of_the_rule = identity_bytes(space, 10, "fp16", predicted=rule)
    assert 0 < of_the_rule - 2 * 150 * (rule + 10 * up) < 3000


def test_hours_and_dollars_follow_from_counted_work(space: LiDBSpace) -> None:
    assert shard_seconds(COUNTED, ASSUMED) == pytest.approx(32 * 100 * 7e12 / 350e12)  # 64 s
    _, *rows = preoptimised(COUNTED, space, ASSUMED)
    assert [row[:4] for row in rows] == [
        ["1", "20", f"{20 * 64 / 3600:.2f}", "1"],
        ["8", "3", f"{3 * 64 / 3600:.2f}", "1"],
        ["64", "1", f"{64 / 3600:.2f}", "2"],
    ]
    assert rows[1][4] == f"{(8 * 2e9 + 640 * 4 * 65536) / 1e9:.1f}"


def test_other_schedules_and_what_comes_before_follow_from_counted_work() -> None:
    one_noise = 20 * 32 * 100 * 1.8 / 350 / 3600  # hours of one GPU for 20 shards
    four = 20 * 64 / 3600
    header, *rows = schedules(COUNTED, ASSUMED)
    assert header[2:] == ["1 GPU (hours)", "8 GPUs (hours)", "64 GPUs (hours)"]
    assert [row[:3] for row in rows] == [
        ["100", "1", f"{one_noise:.2f}"],
        ["100", "4", f"{four:.2f}"],
        ["200", "4", f"{2 * four:.2f}"],
    ]
    told = dict(beforehand(COUNTED, ASSUMED))
    assert told["faces encoded, seconds of its GPU"] == f"{640 * 4 * 1.1 / 350:.0f}"


def test_the_training_follows_from_counted_work() -> None:
    assert training(COUNTED, ASSUMED)[1:] == [  # a base of a billion numbers beside a hypernetwork
        ["weights", "3,000", "240", f"{240e3 / 350 / 3600:.2f}", "15.0", f"{15 + 2 + 3 + 1:.1f}"],
        ["both", "2,000", "380", f"{380e3 / 350 / 3600:.2f}", "85.0", f"{85 + 2 + 3 + 1:.1f}"],
    ]


def test_what_aims_need_follows_from_counted_work() -> None:
    person, picture = 0.4 + 1.1 + 40 * 1.4, 51 * 1.6 + 2.5  # TFLOP
    both, fitted = person + picture, 640 * 100 * 1.8
    assert needed_for_aims(COUNTED, ASSUMED)[1:] == [
        ["a person in 0.5 s", "57.5", f"{person / 0.5:.0f}", f"{person / 0.5 / 700:.0%}"],
        ["a person and the first picture in 1 s", "141.6", f"{both:.0f}", f"{both / 700:.0%}"],
        ["640 people, 100 steps, in 3 hours", "115,200.0", f"{fitted / 10800:.0f}", f"{fitted / 10800 / 700:.0%}"],
    ]


def test_people_served_follow_from_counted_work(space: LiDBSpace) -> None:
    _, one, *_ = served(COUNTED, space, ASSUMED)
    made, drawn = 0.4 + 1.1 + 40 * 1.4, 51 * 1.6 + 2.5  # TFLOP
    assert one[1] == f"{1000 * made / 350 / 3600:.1f}"
    assert one[3] == f"{86400 * 350 / drawn:,.0f}"


def test_prices_follow_from_counted_work() -> None:
    """1,000 people, 10 pictures of each, at 350 TFLOP/s and 2 dollars an hour."""
    _, one, eight, _ = prices(COUNTED, ASSUMED)
    hours = 10_000 * (51 * 1.6 + 2.5) / 350 / 3600
    with_likeness = 10_000 * (51 * 2.4 + 2.5) / 350 / 3600
    making = 1000 * (0.4 + 1.1 + 40 * 1.4) / 350 / 3600
    assert one[1] == f"{hours:.1f}" and one[2] == f"{2 * hours:.0f}"
    assert one[3] == f"{with_likeness:.1f}" and one[4] == f"{2 * with_likeness:.0f}"
    assert one[5] == f"{2 * (hours + making):.0f}" and one[6] == f"{100 * 2 * (hours + making) / 1000:.2f}"
    assert eight[1] == f"{hours / 8:.1f}" and eight[2] == one[2]
    assert [one[7], eight[7]] == ["1,440", "11,520"]  # 720 hours


def test_everything_at_a_fifth_of_the_peak_by_hand() -> None:
    """At 140 TFLOP/s; 20 shards of 160 s are 20 rounds, 3 and 1."""
    rows = {(share, part): cells for share, part, *cells in at_shares(COUNTED, ASSUMED)[1:]}
    assert {share for share, _ in rows} == {"20%", "30%", "40%"}
    fitted, trained = [20 * 160 / 3600, 3 * 160 / 3600, 160 / 3600], (3 * 80e3 + 2 * 190e3) / 140 / 3600
    made, drawn = (1000 * tera / 140 / 3600 for tera in (0.4 + 1.1 + 40 * 1.4, 10 * (51 * 1.6 + 2.5)))
    assert rows["20%", "640 people pre-optimised"][:3] == [f"{hours:.2f}" for hours in fitted]
    assert rows["20%", "hypernetwork trained"] == [
        *(f"{trained / gpus:.2f}" for gpus in (1, 8, 8)),
        *[f"{2 * trained:.0f}"] * 3,
    ]
    last = fitted[2] + trained / 8 + (made + drawn) / 64
    assert rows["20%", "all of it"][2] == f"{last:.2f}"
    assert rows["20%", "all of it"][5] == f"{2 * (64 * fitted[2] + trained + made + drawn):.0f}"


def tables_of(text: str) -> list[list[list[str]]]:
    """The tables of a text in Markdown: rows of cells."""
    tables, before = list[list[list[str]]](), ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        before = line
    return tables


def printed(
    main: object, arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What a benchmark says."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    assert callable(main)
    main()
    return str(capsys.readouterr().out)


def test_the_page_has_the_tables_that_its_commands_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text()
    (seconds,) = re.findall(r"cluster_simulation --seconds ([\d.]+)", page)
    plan = printed(scale.main, [COMMITTED], monkeypatch, capsys)
    simulated = printed(cluster_simulation.main, ["--seconds", seconds], monkeypatch, capsys)
    _, assumed, *tables = tables_of(page)  # the first two, what was measured and assumed, are not their output
    assert len(assumed[0]) == 3 and tables == [*tables_of(plan), *tables_of(simulated)]
    assert f"A shard of 32 people: {seconds} s" in plan and f"F(4) / rate = {seconds} s" in page


def test_figures_in_the_page_s_words_are_those_counted() -> None:
    counted = {one["name"]: one["value"] for one in json.loads(COMMITTED.read_text())}
    page = PAGE.read_text()
    work = {name: round(flops / 1e15) for name, flops in trained(counted).items()}
    assert page.count(f"{sum(work.values())} PFLOP") == 2
    assert all(f"| {flops} PFLOP |" in STABLE_DIFFUSION.read_text() for flops in work.values())
    for words, name in {
        "F(1) = {:,.1f}": "a person's step of 1 noise (GFLOP)",
        "F(4) = {:,.1f}": "a person's step of 4 noises (GFLOP)",
        "T(1) = {:,.1f}": "a step of fine-tuning, 1 noise (GFLOP)",
        "P = {:,.1f}": "prediction, 3 rounds (GFLOP)",
        "E = {:,.1f}": "VAE, encode (GFLOP)",
        "D = {:,.1f}": "VAE, decode (GFLOP)",
        "G = {:,.1f}": "guided step (GFLOP)",
        "rank 1: {:,.1f}": "U-Net, forward and backward of rank 1 (GFLOP)",
        "{:,.0f} operations for a step of F(1)": "a person's step of 1 noise (operations)",
        "{:,.0f} for one of T(1)": "a step of fine-tuning, 1 noise (operations)",
        "{:,.0f} in half precision": "a step of fine-tuning, 1 noise, in half precision (operations)",
    }.items():
        assert words.format(counted[name]) in page, name


def test_seconds_in_the_page_are_those_measured() -> None:
    result = json.loads((DOCS / "sd15-cpu.json").read_text())
    seconds = {row["phase"]: row["seconds"] for row in result["rows"]}
    ours, shared = seconds["fine-tune, 1 noise"], seconds["fine-tune, 4 people x 1 noise"] / 4
    plain = [seconds[f"plain loop, rank {rank}"] for rank in ("1", "4", "4, encodes")]
    four, plain_four = seconds["fine-tune, 4 noises"], seconds["plain loop, rank 4, 4 noises"]
    said = [
        ["fine-tuning, one noise", f"{ours:.2f}", *(f"{one:.2f} ({one / ours:.2f} x)" for one in plain)],
        ["of a person, four in one batch", f"{shared:.2f}", *(f"{one / shared:.2f} x" for one in plain)],
        ["fine-tuning, four noises", f"{four:.1f}", "", f"{plain_four:.1f} ({plain_four / four:.2f} x)", ""],
    ]
    (_, _, *measured), *_ = tables_of(PAGE.read_text())
    assert measured == said


def test_the_committed_counts_are_what_is_counted() -> None:
    """The first five, without a backward pass; all of them take half a minute."""
    committed = [(one["name"], one["value"]) for one in json.loads(COMMITTED.read_text())]
    again = [one[:2] for one in islice(counts(LAYOUTS / "sd1", None, 100, 50, "vit-h"), 5)]
    assert again == committed[:5]


def test_all_tables_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps([{"name": name, "value": value} for name, value in COUNTED.items()]))
    monkeypatch.setattr(sys, "argv", ["scale", str(counts), "--price", "9"])
    scale.main()
    out = capsys.readouterr().out
    assert out.count("\n| --- ") == 10 and "9 dollars a GPU hour" in out
