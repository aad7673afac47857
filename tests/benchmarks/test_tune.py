from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import first_light, tune
from benchmarks.judges import Judges
from benchmarks.subjects import portraits
from hyperdreambooth import HyperDreamBooth
from hyperdreambooth.base.model import Base
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.errors import UserError
from hyperdreambooth.fitting.finetune import PRESETS


def test_every_combination_is_tried() -> None:
    found = tune.combinations(["lr=1e-2,2e-2", "guidance=3"])
    assert found == [{"lr": 0.01, "guidance": 3.0}, {"lr": 0.02, "guidance": 3.0}]
    assert tune.combinations([]) == [{}]
    for wrong in ("lr", "lr=fast", "learning=1"):
        with pytest.raises(UserError):
            tune.combinations([wrong])


def test_values_reach_what_they_name(fresh_base: Base) -> None:
    booth = HyperDreamBooth(fresh_base)
    plain, changed = (
        tune.way(booth, values, alone=True) for values in ({}, {"lr": 0.5, "low": 0.2, "steps": 3, "strength": 0.7})
    )
    assert plain.config.finetune_in(booth.space) == PRESETS["lora"].config and plain.drawing == DrawConfig()
    tuning = changed.config.finetune_in(booth.space)
    assert (tuning.fit.lr, tuning.fit.steps, tuning.objective.window) == (0.5, 3, (0.2, 1.0))
    assert changed.drawing.strength == 0.7 and changed.about(booth) != plain.about(booth)
    in_bases = tune.way(booth, {"rank": 3}, alone=True, relax="lidb").config.finetune_in(booth.space)
    assert (in_bases.relax, in_bases.rank_in(booth.space)) == ("lidb", 3)


def test_figures_and_pictures_are_those_of_first_light(
    monkeypatch: pytest.MonkeyPatch, fresh_base: Base, judges: Judges, tmp_path: Path
) -> None:
    monkeypatch.setattr(tune, "DrawConfig", lambda **values: DrawConfig(steps=1, **values))
    booth, people = HyperDreamBooth(fresh_base), portraits("tuning", 3, 16)
    tried = [{"steps": 1.0, "guidance": 1.0}, {"steps": 1.0, "guidance": 2.0}]
    tune.tune(booth, people, judges, tried, tmp_path, alone=True)
    rows = json.loads((tmp_path / "portraits.json").read_text())
    assert [row["guidance"] for row in rows] == [1.0, 2.0] and all(0 <= row["identification"] <= 1 for row in rows)
    drawn = [first_light.drawn_people(booth, "", tune.way(booth, values, True), people, tmp_path) for values in tried]
    assert not torch.equal(*drawn)
