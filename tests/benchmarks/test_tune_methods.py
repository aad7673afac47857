from __future__ import annotations

import pytest

from benchmarks.tune_methods import variants
from hyperdreambooth.baselines.dreambooth import DreamBooth
from hyperdreambooth.baselines.methods import METHODS, LiDB
from hyperdreambooth.errors import UserError


def test_a_rate_reaches_the_fit_of_every_kind_of_method() -> None:
    found = variants(["dreambooth=1e-4,3e-4:none", "lora-dreambooth=0.5:2", "e4t=1e-3"])
    assert list(found) == ["dreambooth-1e-4", "dreambooth-3e-4-lnone", "lora-dreambooth-0.5-l2", "e4t-1e-3"]
    tuned, lora = found["dreambooth-3e-4-lnone"], found["lora-dreambooth-0.5-l2"]
    assert isinstance(tuned, DreamBooth) and tuned.fit.lr == 3e-4 and tuned.fit.steps == 1200
    assert isinstance(lora, LiDB) and lora.config.finetune.fit_of(predicted=False).lr == 0.5
    assert (tuned.drawing.likeness, lora.drawing.likeness) == (None, 2.0)
    assert found["dreambooth-1e-4"].drawing == METHODS["dreambooth"].drawing
    assert METHODS["lora-dreambooth"] != lora and lora.config.steps == 1000


@pytest.mark.parametrize("setting", ["dreambooth", "dreambooth=fast", "dreambooth=1e-3:much", "magic=1e-3"])
def test_what_is_wrong_is_said(setting: str) -> None:
    with pytest.raises(UserError, match="expected"):
        variants([setting])
