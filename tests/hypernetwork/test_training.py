from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from hyperdreambooth.base.diffusion import denoising_loss
from hyperdreambooth.errors import UserError
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.fitting.fit import Objective, Pictures, fit
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.hypernetwork.jitter import Jitter
from hyperdreambooth.hypernetwork.loss import People
from hyperdreambooth.hypernetwork.model import PRESETS, HyperNetwork, build_hypernetwork
from hyperdreambooth.hypernetwork.training import CURVE_FILE, RESULT_FILE, TrainConfig, _HeldOut, _Loss, train
from tests.conftest import adapted_base
from tests.hypernetwork.conftest import World

STILL = Jitter(zoom=0, shift=0, colour=0, blur=0)
SHORT = TrainConfig(
    weights=FitConfig(4, lr=1e-3, ema=0.5),
    both=FitConfig(3, lr=1e-3),
    weights_batch=8,
    both_batch=4,
    noises=2,
    evaluate_every=2,
)

# For several processes: see tests/fitting/test_processes.py.
SHARED = replace(
    SHORT,
    weights=FitConfig(4, lr=1e-4, grad_clip=1.0, warmup=2, checkpoint_every_seconds=0.0),
    both=FitConfig(4, lr=1e-4, grad_clip=1.0, accumulate=2, checkpoint_every_seconds=0.0),
    both_batch=8,
    weights_batch=16,
)


def run(
    world,
    folder: Path,
    config: TrainConfig,
    network: HyperNetwork | None = None,
    stop: int | None = None,
    people: tuple[int, int] = (12, 8),
):
    """Train on two worlds; the network and the reports."""
    network = network or world.network()
    worlds = {"portraits": world.people(people[0]), "photographs": world.people(people[1], views=1, seed=1)}
    held_out = {"portraits": world.people(4, seed=7)}
    reports = train(network, world.base, world.adapters, worlds, held_out, folder, config)
    return network, list(islice(reports, stop))


def test_the_weight_loss_teaches_people_never_seen(world, tmp_path: Path) -> None:
    weights = FitConfig(120, lr=3e-3, schedule="cosine")
    config = replace(SHORT, weights=weights, weights_batch=16, both=None, jitter=STILL, evaluate_every=40)
    _, reports = run(world, tmp_path, config, people=(96, 64))
    assert reports[-1].held_out["portraits/r2"] > 0.5
    assert reports[-1].step.metrics["weight"] < 0.5 < reports[0].step.metrics["weight"]


def test_both_losses_lower_the_denoising_loss_of_people_never_seen(world, tmp_path: Path) -> None:
    config = replace(SHORT, weights=None, both=FitConfig(12, lr=5e-3), beta=0.0, both_batch=8, evaluate_every=12)
    _, reports = run(world, tmp_path, config)
    held_out = reports[-1].held_out
    assert held_out["portraits/denoising"] < held_out["portraits/nobody"]


def test_with_a_base_in_float16_small_gradients_are_kept(tmp_path: Path) -> None:
    gradients = []
    for dtype in (torch.float32, torch.float16):
        world, once = World(*adapted_base()), FitConfig(1, lr=0.0)
        world.base.to(dtype=dtype)
        config = replace(SHORT, weights=None, both=once, alpha=1e-5, beta=0.0)
        network, _ = run(world, tmp_path / str(dtype), config)
        gradients.append(network.head.weight.grad)
    whole, half = gradients
    assert (half - whole).norm() < 0.05 * whole.norm()


def test_the_denoising_term_is_that_of_fitting(world) -> None:
    """A network without a head predicts the mean person; its term is the loss of a fit that begins there."""
    network, people = world.network(), world.people(3, views=1)
    network.set_statistics(people.numbers)
    torch.nn.init.zeros_(network.head.weight)
    worn = people.numbers.mean(dim=0, keepdim=True).expand(3, -1, -1, -1)
    same = People(people.pictures, people.latents, people.numbers)
    config = TrainConfig(both_batch=3, noises=86, jitter=STILL)
    loss = _Loss(network, world.base, world.adapters, [same], config, "both", torch.Generator().manual_seed(0))
    loss._draw = lambda world: (world, torch.arange(3))  # type: ignore[method-assign]
    with torch.no_grad():
        _, metrics = loss(0)
    assert metrics["weight"] == pytest.approx(float(network.theta(people.numbers).square().mean()), rel=1e-4)

    weights = worn.clone().requires_grad_()
    objective = Objective(noises=64, weighting=config.weighting)
    fitted = fit(
        world.base,
        {"weights": weights},
        lambda: world.adapters.use(weights),
        Pictures(people.latents),
        objective,
        FitConfig(1, lr=1e-9),
    )
    expected = next(iter(fitted)).metrics["denoising"]
    assert metrics["denoising"] == pytest.approx(expected, rel=0.05)  # as other noises allow


def test_what_a_worlds_people_have_in_common_counts_less_in_the_gradient(world) -> None:
    network, gradients = world.network(), dict[float, torch.Tensor]()
    worlds = [world.people(3), world.people(3, seed=1)]
    for common in (1.0, 0.25):
        config, generator = replace(SHORT, both_batch=8, beta=0.0, common=common), torch.Generator().manual_seed(0)
        loss = _Loss(network, world.base, world.adapters, worlds, config, "both", generator)
        network.zero_grad()
        loss(0)[0].backward()
        gradients[common] = network.head.weight.grad.clone()
    assert (gradients[0.25] - gradients[1.0]).norm() > 0.1 * gradients[1.0].norm()
    gradient = torch.randn(8, 2, 1, 3, generator=torch.Generator().manual_seed(1))  # the last loss keeps a quarter
    for n in (slice(4), slice(4, 8)):
        less = loss._less_in_common(gradient)[n]
        torch.testing.assert_close(less, gradient[n] - 0.75 * gradient[n].mean(dim=0))
    with pytest.raises(ValueError, match="common=2"):
        replace(SHORT, common=2.0)


def test_people_without_numbers_are_left_out_of_the_weight_loss(world) -> None:
    people = world.people(8)
    numbers = people.numbers[:2]
    some = replace(people, numbers=numbers)
    network = world.network()
    network.set_statistics(people.numbers)
    torch.nn.init.zeros_(network.head.weight)
    loss = _Loss(network, world.base, world.adapters, [some], replace(SHORT, both_batch=64), "both", torch.Generator())
    drawn = [(some, torch.tensor([1, 0, 5, 7]))]
    own = loss._weight_loss(torch.zeros(4, *numbers.shape[1:]), drawn)
    torch.testing.assert_close(own, network.theta(numbers).square().mean())
    only = _Loss(network, world.base, world.adapters, [some], SHORT, "weights", torch.Generator())
    assert {int(row) for _ in range(20) for row in only._draw(some)[1]} == {0, 1}


def test_samples_and_curve_are_written_as_it_goes(world, tmp_path: Path) -> None:
    _, reports = run(world, tmp_path, SHORT)
    assert [(report.phase, report.step.step) for report in reports] == [
        *(("weights", step) for step in (1, 2, 3, 4)),
        *(("both", step) for step in (1, 2, 3)),
    ]
    assert [report.step.samples for report in reports] == [0, 0, 0, 0, 8, 16, 24]
    lines = [json.loads(line) for line in (tmp_path / CURVE_FILE).read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [
        ("weights", 2),
        ("weights", 4),
        ("both", 2),
        ("both", 3),
    ]
    figures = {f"portraits/{name}" for name in ("r2", "denoising", "nobody", "mean person", "fitted")}
    assert all(set(line["held_out"]) == figures for line in lines)


@pytest.mark.parametrize("stop", [3, 5])
def test_a_stopped_run_ends_as_an_uninterrupted_one(world, tmp_path: Path, stop: int) -> None:
    whole, _ = run(world, tmp_path / "whole", SHORT)
    run(world, tmp_path / "parts", SHORT, stop=stop)
    resumed, reports = run(world, tmp_path / "parts", SHORT)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    assert len(reports) == 7 - stop
    steps = [
        [
            (json.loads(line)["phase"], json.loads(line)["step"])
            for line in (folder / CURVE_FILE).read_text().splitlines()
        ]
        for folder in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert steps[0] == steps[1]


def test_the_result_is_the_averaged_network_that_was_measured(world, tmp_path: Path) -> None:
    fast = replace(SHORT, weights=FitConfig(4, lr=1e-2, ema=0.5), both=None)
    network, reports = run(world, tmp_path, fast)
    people = world.people(4, seed=7)
    predicted = network.predict(people.pictures[:, 0] / 255)
    scale = network.offset_std.unsqueeze(1)
    missed = ((predicted - people.numbers) / scale).square().sum()
    spread = ((people.numbers - people.numbers.mean(dim=0)) / scale).square().sum()
    assert reports[-1].held_out["portraits/r2"] == pytest.approx(float(1 - missed / spread), rel=1e-3)

    loaded = HyperNetwork.load(tmp_path / RESULT_FILE, world.space, world.base.fingerprint)
    torch.testing.assert_close(loaded.predict(people.pictures[:, 0] / 255), predicted, atol=1e-3, rtol=1e-2)


def test_a_person_learns_from_their_own_pictures_alone(world) -> None:
    people = world.people(3)
    strange = replace(people, latents=people.latents * torch.tensor([1.0, 1.0, 9.0])[:, None, None, None, None])
    gradients = []
    for one in (people, strange):
        generator = torch.Generator().manual_seed(0)
        config = replace(SHORT, common=1.0)
        loss = _Loss(world.network(), world.base, world.adapters, [one], config, "both", generator)
        worn = people.numbers[:2].clone().requires_grad_()
        loss._denoising(one, torch.tensor([0, 2]), worn).backward()
        gradients.append(worn.grad)
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    assert not torch.allclose(gradients[0][1], gradients[1][1], rtol=0.1)


@pytest.mark.parametrize("frozen", [True, False])
def test_only_a_frozen_encoder_does_not_move(frozen: bool, world, tmp_path: Path) -> None:
    network, before = world.network(), world.network()
    run(world, tmp_path, replace(SHORT, freeze_encoder=frozen), network)
    pairs = zip(network.encoder.parameters(), before.encoder.parameters(), strict=True)
    assert all(torch.equal(*pair) == frozen for pair in pairs)
    assert not torch.equal(network.head.weight, before.head.weight)


def test_a_folder_of_another_training_is_refused(world, tmp_path: Path) -> None:
    people = {"people": world.people(4)}

    def begin(worlds=people, held_out=people, config=SHORT, network=None) -> None:
        network = network or world.network()
        next(train(network, world.base, world.adapters, worlds, held_out, tmp_path, config))

    begin()
    begin()
    other = world.network()
    other.base = "0123456789abcdef"
    larger = build_hypernetwork(replace(PRESETS["tiny"], layers=1), world.space, world.base.fingerprint)
    numbers = {"people": replace(people["people"], numbers=people["people"].numbers * 1.0001)}
    strangers = {"people": replace(world.people(4, seed=1), numbers=people["people"].numbers)}
    for match, changed in {
        "another base,": {"network": other},
        r"another network \(layers 2, here 1\),": {"network": larger},
        r"another config \(seed 0, here 1\),": {"config": replace(SHORT, seed=1)},
        r"another training numbers \(people \w+, here \w+\),": {"worlds": numbers},
        r"another held out numbers \(people \w+, here \w+\),": {"held_out": numbers},
        "another training people pictures and another training people latents,": {"worlds": strangers},
        "another held out numbers and another held out people pictures": {"held_out": {}},
    }.items():
        with pytest.raises(UserError, match=f"begun with {match}"):
            begin(**changed)


def test_a_checkpoint_of_other_settings_is_refused(world, tmp_path: Path) -> None:
    """Of the same shapes, so that nothing but its name for the settings tells it apart; one without goes on."""
    other, folder = tmp_path / "other", tmp_path / "trained"
    run(world, other, replace(SHORT, seed=1), stop=2)
    run(world, folder, SHORT, stop=1)
    copied, former = other / "weights.run.safetensors", folder / "weights.run.safetensors"
    shutil.copy(copied, former)
    with pytest.raises(UserError, match=r"weights\.run\.safetensors is of a run with other settings .*: remove it"):
        run(world, folder, SHORT)
    former.unlink()
    assert run(world, folder, SHORT, stop=1)[1][0].step.step == 1
    tensors, about = load_tensors(former)
    save_tensors(former, tensors, {key: value for key, value in about.items() if key != "of"})  # of before it was said
    assert run(world, folder, SHORT, stop=1)[1][0].step.step == 2


def test_people_are_measured_in_the_units_of_a_finished_phase(world, tmp_path: Path) -> None:
    run(world, tmp_path, SHORT, stop=5)
    finished, leftover = tmp_path / "weights.safetensors", tmp_path / "weights.run.safetensors"
    other = HyperNetwork.load(finished, world.space, world.base.fingerprint)
    other.offset_std.mul_(2.0)
    other.save(finished, torch.float32)
    leftover.write_bytes(b"of a process that died before it could remove it")
    network, reports = run(world, tmp_path, SHORT)
    assert not leftover.exists()

    people = world.people(4, seed=7)
    scale = network.offset_std.unsqueeze(1)
    missed = ((network.predict(people.pictures[:, 0] / 255) - people.numbers) / scale).square().sum()
    spread = ((people.numbers - people.numbers.mean(dim=0)) / scale).square().sum()
    assert reports[-1].held_out["portraits/r2"] == pytest.approx(float(1 - missed / spread), rel=1e-3)


def test_people_must_agree(world) -> None:
    people = world.people(4)
    with pytest.raises(ValueError, match=r"expected \(N, V\) = \(3, 2\)"):
        People(people.pictures[:3], people.latents, people.numbers[:3])
    with pytest.raises(ValueError, match="numbers of 2 to N"):
        People(people.pictures, people.latents, people.numbers[:1])
    with pytest.raises(ValueError, match="1 prompts"):
        People(people.pictures, people.latents, people.numbers, prompts=("a watercolor of a [V] face",))


def test_pictures_under_other_prompts(world) -> None:
    """Their term is the loss of the base that wears the person, on that picture under that prompt."""
    network, people, prompt = world.network(), world.people(2, views=1), "a watercolor of a [V] face"
    network.set_statistics(people.numbers)
    other = people.latents.flip(0) - 1.0
    styled = People(people.pictures, torch.cat([people.latents, other], dim=1), people.numbers, prompts=(prompt,))
    measure = _HeldOut("portraits", styled, network, world.base, world.adapters, TrainConfig())
    plain = _HeldOut("portraits", people, network, world.base, world.adapters, TrainConfig())
    found, expected = measure(network), plain(network)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    timesteps = (measure.levels * world.base.timesteps).long()
    with torch.no_grad(), world.adapters.use(people.numbers):
        states = world.base.encode_prompts([prompt] * 2).repeat(4, 1, 1)
        losses = denoising_loss(world.base, other[:, 0].repeat(4, 1, 1, 1), states, timesteps, measure.noise)
    assert found["portraits/styled fitted"] == pytest.approx(float(losses.mean()), rel=1e-4)
    assert found["portraits/styled fitted"] != pytest.approx(found["portraits/fitted"], rel=1e-2)


def test_people_held_out_are_measured_a_batch_at_a_time(world) -> None:
    """Nothing passes the U-Net in a larger one than training's, and the figures are those of one pass."""
    network, people = world.network(), world.people(5)
    network.set_statistics(people.numbers)
    torch.nn.init.normal_(network.head.weight, std=0.3, generator=torch.Generator().manual_seed(2))
    latents, prompts = torch.cat([people.latents, people.latents.flip(0) - 1.0], dim=1), ("a [V] face, a", "a [V], b")
    styled = People(people.pictures, latents, people.numbers, torch.rand(5, 4, 1, *latents.shape[3:]), prompts)
    figures, rows = list[dict[str, float]](), list[int]()
    hook = world.base.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    for batch in (5, 2):
        rows.clear()
        config = TrainConfig(both_batch=batch)
        figures.append(_HeldOut("portraits", styled, network, world.base, world.adapters, config)(network))
        assert max(rows) == batch
    hook.remove()
    assert len(figures[0]) == 9 and figures[1] == pytest.approx(figures[0], rel=1e-4)


def test_a_network_that_was_trained_before_begins_where_it_was(world, tmp_path: Path) -> None:
    """Its theta keeps its unit, whoever is fitted now."""
    network = world.network()
    network.set_statistics(world.people(20, seed=5).numbers)
    torch.nn.init.normal_(network.head.weight, std=0.3, generator=torch.Generator().manual_seed(2))
    shown = world.people(2).pictures[:, 0] / 255
    before = network.predict(shown)
    run(world, tmp_path, replace(SHORT, weights=None, both=FitConfig(1, lr=0.0)), network)
    torch.testing.assert_close(network.predict(shown), before)
