"""Features of a frozen encoder, made before: against the encoder itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.hypernetwork.cost import training_cost
from hyperdreambooth.hypernetwork.features import LOOK, look
from hyperdreambooth.hypernetwork.jitter import Jitter
from hyperdreambooth.hypernetwork.loss import People
from hyperdreambooth.hypernetwork.model import PRESETS
from hyperdreambooth.hypernetwork.training import TrainConfig, _Loss, train
from hyperdreambooth.kept import Kept
from hyperdreambooth.progress import Progress

STILL = Jitter(zoom=0, shift=0, colour=0, blur=0)
CONFIG = TrainConfig(
    weights=FitConfig(4, lr=1e-3),
    both=FitConfig(2, lr=1e-3),
    weights_batch=8,
    both_batch=4,
    noises=1,
    freeze_encoder=True,
    versions=3,
    evaluate_every=2,
)


def people_of(world, count: int = 6) -> People:
    """People whose pictures hold something, two of each."""
    pictures = torch.randint(256, (count, 2, 3, 16, 16), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return replace(world.people(count), pictures=pictures)


def test_they_are_what_the_encoder_sees(world, tmp_path: Path) -> None:
    encoder, people, told = world.network().encoder, people_of(world), list[Progress]()
    features = look(encoder, people.pictures, Kept(tmp_path), STILL, 2, told.append)
    rows, views, versions = torch.tensor([4, 0, 4]), torch.tensor([1, 0, 0]), torch.tensor([0, 1, 1])
    with torch.no_grad():
        expected = encoder(people.pictures[rows, views].float() / 255)
    torch.testing.assert_close(features(rows, views, versions), expected, atol=5e-3, rtol=2e-3)  # half precision
    assert told == [Progress(LOOK, done, 6) for done in range(1, 7)]


def test_versions_differ_and_depend_on_the_picture_alone(world, tmp_path: Path) -> None:
    encoder, people = world.network().encoder, people_of(world)
    many = look(encoder, people.pictures, Kept(tmp_path / "many"), Jitter(), 3)
    alone = look(encoder, people.pictures[4:5], Kept(tmp_path / "alone"), Jitter(), 3)
    versions = torch.arange(3)
    seen = many(torch.full((3,), 4), torch.ones(3, dtype=torch.long), versions)
    torch.testing.assert_close(alone(torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long), versions), seen)
    with torch.no_grad():
        plain = encoder(people.pictures[4, 1:2].float() / 255)
    apart = [(one - plain[0]).norm() / plain.norm() for one in seen]
    assert all(0.01 < one < 0.9 for one in apart) and not torch.allclose(seen[0], seen[1], atol=1e-2)


def test_nobody_is_looked_at_twice(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, people, told = world.network().encoder, people_of(world), list[Progress]()
    look(encoder, people.pictures, Kept(tmp_path), Jitter(), 2)
    look(encoder, people.pictures, Kept(tmp_path), Jitter(), 2, told.append)
    assert not told
    look(world.network(seed=1).encoder, people.pictures[:2], Kept(tmp_path), Jitter(), 2, told.append)  # another one
    look(encoder, people.pictures[:2], Kept(tmp_path), Jitter(zoom=0.5), 2, told.append)
    assert [one.done for one in told] == [1, 2, 1, 2]


def test_the_loss_is_the_same_as_with_the_encoder(world, tmp_path: Path) -> None:
    network, people = world.network(), people_of(world)
    network.set_statistics(people.numbers)
    features = look(network.encoder, people.pictures, Kept(tmp_path), STILL, 1)
    config = replace(CONFIG, jitter=STILL)
    given = network, world.base, world.adapters, [people], config, "weights"
    losses = []
    for seen in ((), (features,)):
        loss = _Loss(*given, torch.Generator().manual_seed(0), features=seen)
        losses.append(loss(0)[0].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_training_does_not_ask_the_encoder(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, people = world.network(), people_of(world)
    features = {"portraits": look(network.encoder, people.pictures, Kept(tmp_path / "seen"), CONFIG.jitter, 3)}
    asked, forward = list[int](), network.encoder.forward
    monkeypatch.setattr(network.encoder, "forward", lambda pictures: asked.append(len(pictures)) or forward(pictures))
    given = world.base, world.adapters, {"portraits": people}
    reports = list(train(network, *given, {}, tmp_path / "run", CONFIG, features=features))
    assert len(reports) == 4 + 2 and not asked and reports[0].step.loss != reports[3].step.loss
    list(train(network, *given, {"portraits": people}, tmp_path / "measured", CONFIG, features=features))
    assert set(asked) == {6}  # who is held out is looked at in full
    with pytest.raises(ValueError, match="expected a frozen one's"):
        next(train(network, *given, {}, tmp_path / "thawed", replace(CONFIG, freeze_encoder=False), features=features))


def test_what_they_spare_is_counted(world) -> None:
    sizes = PRESETS["tiny"]
    kept, always = (
        training_cost(sizes, world.base, world.adapters, replace(CONFIG, versions=versions)) for versions in (3, 0)
    )
    network = world.network()
    one = training_cost(sizes, world.base, world.adapters, CONFIG).prediction_flops
    spared = always.phases["weights"].flops_per_step - kept.phases["weights"].flops_per_step
    assert 0 < spared < CONFIG.weights_batch * one  # the encoder, forward, of everybody in the batch
    assert spared * CONFIG.both_batch == CONFIG.weights_batch * (
        always.phases["both"].flops_per_step - kept.phases["both"].flops_per_step
    )
    assert network.config.encoder == sizes.encoder
