"""What is said of the aims: reached, not reached, and what nobody can say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from hyperdreambooth.baselines.methods import OURS
from hyperdreambooth.evaluation import costs, tables
from hyperdreambooth.evaluation.aims import aims, quick_set
from hyperdreambooth.evaluation.drawn import Drawn
from hyperdreambooth.evaluation.prompts import SETS
from hyperdreambooth.evaluation.protocol import asked
from hyperdreambooth.evaluation.records import FORMAT, PersonRecord, PictureRecord, RunFolder, Writer
from hyperdreambooth.evaluation.scores import CELLS, Scores
from hyperdreambooth.lidb import LiDBSpace, LoRALayout, find_blocks, find_sites
from tests.evaluation.test_tables import run_of, scores


def said_of(run: dict[str, Scores], quick: tuple[float, str] | None = None) -> dict[str, tuple[str, str]]:
    """What was measured and whether it is reached, by aim."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in aims(run, quick=quick)]
    return {aim: (measured, reached) for aim, measured, reached in cells}


def test_aims_are_said_with_what_was_measured() -> None:
    run = run_of(
        scores(OURS, 0.5, 5),
        scores("dreambooth", 0.6, 5, seconds=50),
        scores("dreambooth-agg-2", 0.5, 5),
        scores("textual-inversion", 0.1, 5, seconds=100, together=4),
        scores("one-noise", 0.45, 5, seconds=1),
    )
    run["dreambooth"] = replace(
        run["dreambooth"], cells=dict(run["dreambooth"].cells) | {"clip_t": run[OURS].cells["clip_t"] - 0.1}
    )
    said = {line.split("|")[1].strip(): line for line in aims(run, {"clip_t": "CT", **dict.fromkeys(CELLS, "m")})}
    assert said["no worse than dreambooth"].endswith("| in m |") and "-10.0" in said["no worse than dreambooth"]
    said = {line.split("|")[1].strip(): line for line in aims(run)}
    assert said["no worse than dreambooth"].endswith("| in CLIP-T |")
    assert said["no worse than dreambooth-agg-2"].endswith("| yes |")
    assert said["better than textual-inversion"].endswith("| yes |")
    assert said["25 x sooner than dreambooth, one noise a step"].endswith("| 50.0 x | yes |")
    # Whose seconds were shared by four.
    assert said["125 x sooner than textual-inversion, one noise a step"].endswith("| not comparable |  |")
    assert said["25 x sooner than dreambooth, at equal likeness"].endswith("| not measured |  |")  # there is no curve
    del run["one-noise"]
    said = {line.split("|")[1].strip(): line for line in aims(run)}
    assert said["25 x sooner than dreambooth, one noise a step"].endswith("| not measured |  |")


def test_of_too_few_people_nothing_is_said_to_be_reached() -> None:
    for people in (1, 4):
        run = run_of(scores(OURS, 0.5, people), scores("textual-inversion", 0.1, people), scores("k-1", 0.4, people))
        rows = [line for line in aims(run) if line.startswith(("| better", "| the paper's order"))]
        assert len(rows) == 2 and all(line.endswith("| too few people |") for line in rows)
        text = "\n".join((*rows, *tables.differences(run), *tables.paper_tables(run)))
        assert "**" not in text.replace(f"**{OURS}**", "") and "nan" not in text
        assert "| +0.400<br>*too few people* |" in text and "%<br>*too few people* |" in text
    run = run_of(*(scores(name, value, 5) for name, value in ((OURS, 0.5), ("textual-inversion", 0.1))))
    assert "**+0.400**" in "\n".join(tables.differences(run))


@pytest.mark.parametrize(
    ("seconds", "likeness", "measured", "reached"),
    [
        ((20, 200), (0.2, 0.6), "31.6 x (63.2 s)", "yes"),  # half of the way, in the logarithm
        ((2, 200), (0.2, 0.6), "10.0 x (20.0 s)", "no"),
        ((20, 200), (0.1, 0.3), "more than 100.0 x (not in 200.0 s (at best 0.300))", "yes"),
        ((2, 20), (0.1, 0.3), "more than 10.0 x (not in 20.0 s (at best 0.300))", "not known"),
        ((20, 200), (0.5, 0.6), "at most 10.0 x (at most 20.0 s)", "no"),
        ((60, 200), (0.5, 0.6), "at most 30.0 x (at most 60.0 s)", "not known"),
    ],
)
def test_speed_at_equal_likeness_is_an_aim(
    seconds: tuple[float, float], likeness: tuple[float, float], measured: str, reached: str
) -> None:
    aim = "25 x sooner than dreambooth, at equal likeness"
    names = ("dreambooth@10", "dreambooth")
    curve = [scores(name, *about) for name, *about in zip(names, likeness, (5, 5), seconds, strict=True)]
    run = run_of(scores(OURS, 0.4, 5), *(replace(one, iterations=10.0 + n) for n, one in enumerate(curve)))
    assert said_of(run)[aim] == (measured, reached)
    few = {
        name: replace(one, people=one.people[:4], cells=dict.fromkeys(CELLS, one.cells["face"][:4]))
        for name, one in run.items()
    }
    assert said_of(few)[aim][1] == "too few people"
    elsewhere = run | run_of(replace(run[OURS], machine="NVIDIA H100 bf16"))
    assert said_of(elsewhere)[aim] == ("not comparable", "")


def test_bytes_before_relaxation_are_counted_on_stable_diffusion() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        sites, blocks = find_sites(unet, CLIPTextModel(text)), find_blocks(unet)
    assert LiDBSpace((*sites, *blocks), 100, 50, rule_sites=len(sites)).size() == costs.WITH_BLOCKS
    assert LiDBSpace(sites, a=100, b=50).size() == costs.LIDB and LoRALayout(sites, rank=1).size == costs.RANK_ONE
    assert sum(p.numel() for p in unet.parameters()) == costs.UNET
    said = said_of(run_of(scores(OURS, 0.5), scores("relaxed-lidb", 0.5)))
    counted = "before relaxation, on Stable Diffusion 1.5: at most"
    assert said[f"{counted} 7.5 % of rank-1 LoRA"] == ("28,800 of 385,344 numbers, 1/13.4", "yes")
    assert said[f"{counted} 1/10,000 of the U-Net"] == ("28,800 of 859,520,964 numbers, 1/29,844.5", "yes")
    blocks = f"{counted} 7.5 % of rank-1 LoRA, with the residual blocks, as is usual here"
    assert said[blocks] == ("40,800 of 385,344 numbers, 1/9.4", "no")
    sizes = f"{OURS} 1,000; relaxed-lidb 1,000"
    assert said["bytes after relaxation, in LiDB and in full space"] == (sizes, "")


def timed_quick_set(folder: Path) -> RunFolder:
    """The quick set by ours, two seconds a person and a quarter of one a picture."""
    quick = SETS["quick"]
    people = [f"portrait-{number}" for number in range(quick.people)]
    prompts = [[one.prompt, one.count, one.seed] for one in asked(quick)]
    plan = {"format": FORMAT, "people": people, "prompts": prompts, "base": "b", "hypernetwork": "h"}
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    run = RunFolder(folder)
    writer = Writer(run)
    for row, person in enumerate(people):
        assert quick_set(Drawn(run)) is None
        writer.write(PersonRecord(OURS, person, 40, 80, 2.0, 1, 4, "cpu fp32, 2 threads"))
        for one in asked(quick):
            files = [f"{row}-{one.seed}-{k}" for k in range(one.count)]
            writer.write(*(PictureRecord(OURS, person, one.prompt, one.seed, file, 0.25) for file in files))
    writer.close()
    return run


def test_the_time_of_the_quick_set_is_of_a_whole_quick_run(tmp_path: Path) -> None:
    run = timed_quick_set(tmp_path)
    drawn = SETS["quick"].people * sum(one.count for one in asked(SETS["quick"]))
    seconds, machine = quick_set(Drawn(run)) or (0.0, "")
    assert seconds == pytest.approx(2.0 * SETS["quick"].people + 0.25 * drawn) and machine == "cpu fp32, 2 threads"
    aim, some = "the quick set by ours in 5 minutes, two cores", run_of(scores(OURS, 0.5))
    assert said_of(some, (seconds, machine))[aim] == (f"{seconds:,.0f} s (cpu fp32, 2 threads)", "yes")
    assert said_of(some, (301.0, machine))[aim][1] == "no"
    assert said_of(some, (30.0, "NVIDIA H100 bf16"))[aim][1] == "not comparable"
    assert said_of(some)[aim] == ("not measured", "")
    (shard,) = (tmp_path / "records").glob("*.jsonl")  # one of a run from before they were timed
    shard.write_text(shard.read_text().replace(', "seconds": 0.25', "", 1))
    assert len(run.pictures()) == drawn and quick_set(Drawn(run)) is None
