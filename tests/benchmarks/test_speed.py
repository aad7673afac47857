from __future__ import annotations

import pytest

from benchmarks import speed
from hyperdreambooth import HyperDreamBooth
from hyperdreambooth.base.model import Base
from hyperdreambooth.hypernetwork.model import PRESETS, build_hypernetwork


def test_every_figure_of_the_readme_is_measured(fresh_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    booth = HyperDreamBooth(fresh_base)
    booth.hypernetwork = build_hypernetwork(PRESETS["tiny"], booth.space, booth.fingerprint).eval()
    for name in ("PORTRAITS", "PEOPLE", "STEPS"):
        monkeypatch.setattr(speed, name, 4)
    found = speed.measure_speed(booth)
    assert list(found) == [
        "read face (s)",
        "encode (s)",
        "predict (s)",
        "fine-tune (s)",
        "personalise (s)",
        "eight guided 25-step pictures (s)",
        "portraits drawn per second",
        "photograph of 12 megapixels read, its face found (s)",
        "peak memory of hdb personalize (GB)",
        "identity-steps per second, 32 at once",
        "identity-steps per second, one at a time",
        "32 at once against one at a time (x)",
    ]
    assert all(value > 0 for value in found.values())
    assert found["personalise (s)"] == pytest.approx(sum(list(found.values())[:4]))
    assert 0.1 < found["peak memory of hdb personalize (GB)"] < 5  # python and torch alone are a few tenths
