from __future__ import annotations

import pytest

from benchmarks.tune_methods import variants
from hyperdreambooth.baselines.dreambooth import DreamBooth
from hyperdreambooth.baselines.methods import METHODS, LiDB
from hyperdreambooth.errors import UserError


def test_a_rate_reaches_the_fit_of_every_kind_of_method() -> None:
    found = variants(["dreambooth=1e-4,3e-4", "lora-dreambooth=0.5", "e4t=1e-3"])
    assert list(found) == ["dreambooth-0.0001", "dreambooth-0.0003", "lora-dreambooth-0.5", "e4t-0.001"]
    tuned, lora = found["dreambooth-0.0003"], found["lora-dreambooth-0.5"]
    assert isinstance(tuned, DreamBooth) and tuned.fit.lr == 3e-4 and tuned.fit.steps == 1200
    assert isinstance(lora, LiDB) and lora.config.finetune.fit_of(predicted=False).lr == 0.5
    assert METHODS["lora-dreambooth"] != lora and lora.config.steps == 1000


@pytest.mark.parametrize("setting", ["dreambooth", "dreambooth=fast", "magic=1e-3"])
def test_what_is_wrong_is_said(setting: str) -> None:
    with pytest.raises(UserError, match="expected"):
        variants([setting])
