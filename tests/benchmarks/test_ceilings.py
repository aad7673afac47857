from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import ceilings
from benchmarks.judges import Judges
from hyperdreambooth import HyperDreamBooth
from hyperdreambooth.base.model import Base
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.errors import UserError
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.hypernetwork.loss import People, denoising_together
from hyperdreambooth.hypernetwork.model import PRESETS, build_hypernetwork
from hyperdreambooth.people import encode_crowd, read_people

QUICK = DrawConfig(steps=1, guidance=1.0)


@pytest.fixture
def booth(fresh_base: Base) -> HyperDreamBooth:
    booth = HyperDreamBooth(fresh_base)
    booth.hypernetwork = build_hypernetwork(PRESETS["tiny"], booth.space, booth.fingerprint).eval()
    booth.hypernetwork.requires_grad_(False)
    return booth


def test_every_part_begins_at_the_prediction_and_its_fit_lowers_the_loss(
    booth: HyperDreamBooth, tmp_path: Path
) -> None:
    network = booth.hypernetwork
    people = read_people("portraits:15000-15001", 16, 2, lambda _: None)
    crowd = encode_crowd(booth.base, people, ("neon",))
    predicted = network.predict(people.pictures[:, 0])
    learnt = People(crowd.pictures, crowd.latents, predicted, crowd.masks, crowd.prompts)
    parts = ceilings.parts(network, people.pictures[:, 0], ranks=2)

    def loss(worn: torch.Tensor) -> float:
        generator, rows = torch.Generator().manual_seed(5), torch.arange(2)
        some = booth.base, booth.adapters, worn, learnt, rows, 60, ceilings.PROMPT, generator
        return float(denoising_together(*some).detach().mean())

    before = loss(predicted)
    for number, part in enumerate(parts.values()):
        assert loss(part.numbers()) == pytest.approx(before, rel=1e-5)
        fitted = ceilings.fit_part(booth, part, learnt, FitConfig(25, lr=3e-2), 8, tmp_path / f"{number}.safetensors")
        assert fitted.shape[2] == (1, 1, 3)[number]
        assert loss(fitted) < before
    assert all(p.grad is None for p in network.parameters())  # the network itself stays as it is


def test_every_row_has_a_score_and_is_kept(
    monkeypatch: pytest.MonkeyPatch, booth: HyperDreamBooth, judges: Judges, tmp_path: Path
) -> None:

    def scores() -> dict[str, ceilings.Score]:
        return ceilings.ceilings(booth, judges, 2, 3, FitConfig(2), 2, 1, tmp_path, QUICK)

    found = scores()
    assert list(found) == [
        "hypernetwork alone",
        "features fitted",
        "one rank fitted",
        "2 ranks fitted",
        "alone, people it learnt from",
    ]
    assert all(value.people == 2 for value in found.values())
    monkeypatch.setattr(ceilings, "fit_part", None)
    assert [value.share for value in scores().values()] == [value.share for value in found.values()]
    with pytest.raises(UserError, match="begun with another people"):
        ceilings.ceilings(booth, judges, 2, 3, FitConfig(3), 2, 1, tmp_path, QUICK)
    with pytest.raises(UserError, match="3 people among 2"):
        ceilings.ceilings(booth, judges, 3, 2, FitConfig(2), 2, 1, tmp_path, QUICK)
