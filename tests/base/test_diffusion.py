"""The denoising loss against diffusers' own scheduler functions."""

import pytest
import torch
from diffusers import DDPMScheduler

from hyperdreambooth.base.diffusion import Weighting, denoising_loss
from hyperdreambooth.base.model import Base

TYPES = ("epsilon", "v_prediction", "sample")


def batch(base: Base, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Four samples at timesteps over the whole schedule."""
    return {
        "latents": base.noise(4, generator),
        "states": base.encode_prompts(["a photo of a [V] face", "a sketch", "", "the snow"]),
        "timesteps": torch.tensor([0, 250, 700, 999]),
        "noise": base.noise(4, generator),
    }


def theirs(base: Base, values: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    """Squared errors (N, C, h, w) as diffusers' training scripts compute them."""
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=kind)
    x, noise, t = values["latents"], values["noise"], values["timesteps"]
    output = base.unet(scheduler.add_noise(x, noise, t), t, values["states"]).sample
    target = {"epsilon": noise, "v_prediction": scheduler.get_velocity(x, noise, t), "sample": x}[kind]
    return (output - target) ** 2


@pytest.mark.parametrize("kind", TYPES)
def test_loss_is_that_of_diffusers(fresh_base: Base, generator: torch.Generator, kind: str) -> None:
    fresh_base.scheduler.register_to_config(prediction_type=kind)
    values = batch(fresh_base, generator)
    loss = denoising_loss(fresh_base, **values)
    assert loss.shape == (4,)
    torch.testing.assert_close(loss, theirs(fresh_base, values, kind).mean(dim=(1, 2, 3)))


def test_mask_weighs_places(tiny_base: Base, generator: torch.Generator) -> None:
    values = batch(tiny_base, generator)
    errors = theirs(tiny_base, values, "v_prediction")
    left = torch.zeros(4, 1, 8, 8)
    left[..., :4] = 0.25  # weights count relatively: the left half alone
    torch.testing.assert_close(denoising_loss(tiny_base, **values, mask=left), errors[..., :4].mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("kind", TYPES)
def test_min_snr_clips_the_weight_of_the_error_in_x(fresh_base: Base, generator: torch.Generator, kind: str) -> None:
    """Whatever is predicted, the weighted loss is min(SNR, gamma) times the error of the x that it implies."""
    fresh_base.scheduler.register_to_config(prediction_type=kind)
    values = batch(fresh_base, generator)
    values["timesteps"] = torch.tensor([20, 250, 500, 800])  # where x can be told from eps in float32
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    kept = scheduler.alphas_cumprod[values["timesteps"]].view(-1, 1, 1, 1)
    noisy = scheduler.add_noise(values["latents"], values["noise"], values["timesteps"])
    output = fresh_base.unet(noisy, values["timesteps"], values["states"]).sample
    implied = {
        "epsilon": (noisy - (1 - kept).sqrt() * output) / kept.sqrt(),
        "v_prediction": kept.sqrt() * noisy - (1 - kept).sqrt() * output,
        "sample": output,
    }[kind]
    weight = (kept / (1 - kept)).clamp(max=5.0).flatten()
    expected = weight * (implied - values["latents"]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(
        denoising_loss(fresh_base, **values, weighting=Weighting(min_snr=5.0)), expected, rtol=1e-3, atol=1e-5
    )


def test_fading_weighs_by_a_power_of_the_share_of_signal(tiny_base: Base, generator: torch.Generator) -> None:
    values = batch(tiny_base, generator)
    kept = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod[values["timesteps"]]
    expected = kept**0.3 * denoising_loss(tiny_base, **values)
    torch.testing.assert_close(denoising_loss(tiny_base, **values, weighting=Weighting(fade=0.3)), expected)


def test_samples_do_not_touch_each_other(tiny_base: Base, generator: torch.Generator) -> None:
    values = batch(tiny_base, generator)
    together = denoising_loss(tiny_base, **values)
    alone = [denoising_loss(tiny_base, **{k: v[i : i + 1] for k, v in values.items()}) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))
