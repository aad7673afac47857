"""What E4T learns beforehand, and how good it is at it."""

from __future__ import annotations

import pytest
import torch

from hyperdreambooth.base.model import Base
from hyperdreambooth.fitting.steps import FitConfig, steps
from hyperdreambooth.hypernetwork.model import PRESETS, random_hypernetwork
from hyperdreambooth.people import encode_crowd
from hyperdreambooth.pipeline import HyperDreamBooth, space_of
from recipes import e4t, hyper


def test_who_has_learnt_denoises_people_better_than_the_class_noun(fresh_base: Base) -> None:
    """People whom it has learnt from, as there is no time for others; before that it is as good as nobody's word."""
    network = random_hypernetwork(PRESETS["tiny"], space_of(fresh_base), fresh_base.fingerprint)
    booth = HyperDreamBooth(fresh_base, network)
    people = e4t.people_of(encode_crowd(fresh_base, hyper.portraits(fresh_base.picture_size)(0, 4)), booth)
    word = e4t.fresh_network(booth)
    before, nobody = e4t.own_scores(word, booth, people).values()
    assert before == pytest.approx(nobody, rel=1e-3)
    loss = e4t.training_loss(word, booth, [people], 4, 2, torch.Generator().manual_seed(0))
    list(steps(dict(word.named_parameters()), loss, FitConfig(steps=30, lr=1e-2)))
    after, again = e4t.own_scores(word, booth, people).values()
    assert again == nobody and after < 0.98 * nobody
