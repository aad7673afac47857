"""Fitting people: strangers in one batch, the same noises for everybody, the loss of an independent computation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from hyperdreambooth.fitting.fit import NoiseSequence, Objective, Pictures, fit
from hyperdreambooth.fitting.preoptimize import PreoptimizeConfig, fit_people
from hyperdreambooth.fitting.steps import FitConfig, StepReport
from tests.fitting.conftest import World, assert_same_fit

CONFIG = PreoptimizeConfig(
    fit=FitConfig(steps=6, lr=1e-2, average_last=0.5), objective=Objective(noises=3, pull=1e-2), shard=8
)


def fitted(
    world: World, pictures: Pictures, config: PreoptimizeConfig = CONFIG
) -> tuple[torch.Tensor, list[StepReport]]:
    run = fit_people(world.base, world.adapters, pictures, config)
    reports = list(run)
    return run.averages["weights"].detach(), reports


def sequence(noises: int, **settings: object) -> NoiseSequence:
    return NoiseSequence((4, 8, 8), 1000, views=3, noises=noises, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("masks", [False, True])
def test_many_people_at_once_equal_one_by_one(world: World, masks: bool) -> None:
    pictures = world.pictures(3, views=2, masks=masks)
    together, reports = fitted(world, pictures)
    for n in range(3):
        mask = None if pictures.masks is None else pictures.masks[n : n + 1]
        alone, _ = fitted(world, Pictures(pictures.latents[n : n + 1], mask))
        assert_same_fit(together[n], alone[0], world.space.start())
    assert reports[-1].samples == 6 * 3 * 3  # steps, people, noises


def test_the_loss_is_that_of_diffusers_on_the_bare_base(world: World) -> None:
    """Everybody starts with dW = 0, so the first loss is the base's own, here with diffusers' noising and velocity."""
    pictures = world.pictures(2, views=2)
    _, reports = fitted(world, pictures)
    draw = NoiseSequence(world.base.latent_shape, 1000, views=2, noises=3).draw(0)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    states = world.base.encode_prompts(["a sks face"])
    losses = []
    for person in pictures.latents:
        for timestep, noise, view in zip(draw.timesteps, draw.noise, draw.views, strict=True):
            noisy = scheduler.add_noise(person[view], noise, timestep)
            velocity = scheduler.get_velocity(person[view][None], noise[None], timestep[None])
            with torch.no_grad():
                predicted = world.base.unet(noisy[None], timestep, states).sample
            losses.append(torch.nn.functional.mse_loss(predicted, velocity))
    expected = torch.stack(losses).mean().item()
    assert reports[0].metrics["denoising"] == pytest.approx(expected, rel=1e-4)
    assert reports[0].loss == pytest.approx(2 * expected, rel=1e-4)


def test_a_place_of_no_weight_does_not_matter(world: World) -> None:
    pictures = world.pictures(1, masks=True)
    assert pictures.masks is not None
    pictures.masks[..., :4, :] = 0
    changed = pictures.latents.clone()
    clean, _ = fitted(world, pictures)
    changed[..., :4, :] += 1.0
    # The network sees those places, so it is the loss of a network that ignores them which must not change: one step
    # with everything at full noise (timestep T - 1), where almost nothing of the picture is left to see.
    config = replace(CONFIG, objective=Objective(noises=1, window=(0.999, 1.0)))
    one, _ = fitted(world, pictures, config)
    other, _ = fitted(world, Pictures(changed, pictures.masks), config)
    unmasked, _ = fitted(world, Pictures(changed), config)
    assert (one - other).abs().max() < 0.1 * (one - unmasked).abs().max()
    assert torch.isfinite(clean).all()


def test_fitting_lowers_the_loss_on_noises_it_never_met(world: World) -> None:
    pictures = world.pictures(2)
    config = replace(CONFIG, fit=FitConfig(steps=30, lr=5e-2), objective=Objective(noises=2))
    weights, _ = fitted(world, pictures, config)
    assert held_out_loss(world, pictures, weights) < 0.95 * held_out_loss(world, pictures, world.space.start())
    assert held_out_loss(world, pictures, weights) < 0.98 * held_out_loss(world, pictures, weights.flip(0))


def held_out_loss(world: World, pictures: Pictures, weights: torch.Tensor) -> float:
    """Mean denoising loss of people wearing these weights, on a sequence of noises of its own: a fit with no effect."""
    people = len(pictures.latents)
    worn = weights.expand(people, *weights.shape[-3:]).clone().requires_grad_()
    config = FitConfig(steps=1, lr=0.0)
    objective = Objective(noises=16, seed=99)
    run = fit(world.base, {"worn": worn}, lambda: world.adapters.use(worn), pictures, objective, config)
    return next(iter(run)).metrics["denoising"]


def test_the_text_encoder_learns_too(world: World) -> None:
    weights, _ = fitted(world, world.pictures(1))
    moved = (weights[0] - world.space.start()).abs().amax(dim=(1, 2))  # (S,)
    assert all(moved[i] > 1e-3 for i, site in enumerate(world.space.sites) if site.model == "text_encoder")


def test_the_pull_keeps_people_near_their_start(world: World) -> None:
    pictures, start = world.pictures(2), world.space.start()
    objective = replace(CONFIG.objective, pull=0.0)
    free, _ = fitted(world, pictures, replace(CONFIG, objective=objective))
    pulled, _ = fitted(world, pictures, replace(CONFIG, objective=replace(objective, pull=10.0)))
    assert (pulled - start).norm() < 0.7 * (free - start).norm()


def test_a_clipped_gradient_is_refused_for_several_people(world: World) -> None:
    config = replace(CONFIG, fit=FitConfig(steps=1, grad_clip=1.0))
    with pytest.raises(ValueError, match="ties people"):
        fitted(world, world.pictures(2), config)
    fitted(world, world.pictures(1), config)


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    one, again, other = sequence(4).draw(7), sequence(4).draw(7), sequence(4, seed=1).draw(7)
    assert torch.equal(one.noise, again.noise) and torch.equal(one.timesteps, again.timesteps)
    assert not torch.equal(one.noise, other.noise) and not torch.equal(one.timesteps, other.timesteps)
    assert not torch.equal(one.noise, sequence(4).draw(8).noise)
    assert abs(one.noise.mean()) < 0.1 and abs(one.noise.std() - 1) < 0.1


def test_timesteps_cover_the_window_evenly_at_every_step_and_over_steps() -> None:
    steps = torch.stack([sequence(4).draw(step).timesteps for step in range(40)])  # (40, 4)
    assert torch.equal(steps // 250, torch.arange(4).expand(40, 4))
    gaps = steps.flatten().sort().values.diff()
    assert gaps.max() < 3 * 1000 / steps.numel()
    narrow = torch.stack([sequence(2, window=(0.2, 0.6)).draw(step).timesteps for step in range(40)])
    assert narrow.min() >= 200 and narrow.max() < 600 and narrow.max() - narrow.min() > 350


def test_views_are_dealt_without_repeats() -> None:
    views = [tuple(sequence(3).draw(step).views.tolist()) for step in range(30)]
    assert {tuple(sorted(dealt)) for dealt in views} == {(0, 1, 2)} and len(set(views)) > 3
    assert sequence(5).draw(0).views.bincount().tolist() in ([2, 2, 1], [2, 1, 2], [1, 2, 2])


def test_pictures_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(N, V, C, h, w\)"):
        Pictures(torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"expected \(2, 1, 1, 8, 8\)"):
        Pictures(torch.zeros(2, 1, 4, 8, 8), torch.zeros(2, 1, 8, 8))
