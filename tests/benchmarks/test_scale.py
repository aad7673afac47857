"""The plan on paper, against its formulas worked out here."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.scale import (
    Assumed,
    beforehand,
    identity_bytes,
    preoptimised,
    schedules,
    sd15_space,
    served,
    shard_seconds,
)
from hyperdreambooth.lidb import LiDBSpace

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


def test_people_served_follow_from_counted_work(space: LiDBSpace) -> None:
    _, one, *_ = served(COUNTED, space, ASSUMED)
    made, drawn = 0.4 + 1.1 + 40 * 1.4, 51 * 1.6 + 2.5  # TFLOP
    assert one[1] == f"{1000 * made / 350 / 3600:.1f}"
    assert one[3] == f"{86400 * 350 / drawn:,.0f}"


def test_all_tables_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps([{"name": name, "value": value} for name, value in COUNTED.items()]))
    monkeypatch.setattr(sys, "argv", ["scale", str(counts), "--price", "9"])
    scale.main()
    out = capsys.readouterr().out
    assert out.count("\n| --- ") == 6 and "9 dollars a GPU hour" in out
