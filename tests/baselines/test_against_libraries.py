"""One step of each baseline is the step that a plain diffusers or PEFT training loop takes, on the same draw.

With the face's mask, with which people are fitted, the plain loop's mean over places is weighted by it.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from diffusers import DDPMScheduler
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from hyperdreambooth.base.model import Base
from hyperdreambooth.baselines.dreambooth import DreamBooth
from hyperdreambooth.baselines.textual_inversion import TextualInversion
from hyperdreambooth.faces import face_masks
from hyperdreambooth.fitting.finetune import FinetuneConfig, finetune
from hyperdreambooth.fitting.fit import NoiseSequence, Objective, Pictures, Prior
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.lidb import LoRALayout
from tests.fitting.conftest import World, make_world

OBJECTIVE = Objective(noises=1, seed=3)
STEP = FitConfig(steps=1, lr=1e-3)
# AdamW's first step is lr * sign(gradient) but for gradients near 0, so numbers are compared by the share that agrees.
AGREE, TOLERANCE = 0.995, 1e-5


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def drawn(world: World, seed: int, views: int) -> tuple[Tensor, Tensor, int]:
    """The first step's noise (1, C, h, w) and timestep (1,), and which view it meets."""
    draw = NoiseSequence(world.base.latent_shape, 1000, views, 1, seed).draw(0)
    return draw.noise, draw.timesteps, int(draw.views)


def photographed(world: World, people: int, masked: bool) -> tuple[Pictures, Tensor | None]:
    """A picture of each, with the masks that every method's fit gives them, and the mask (1, 1, h, w) of all, or none.

    Random latents have no face, and need none: the mask lies where a cropped photograph's is.
    """
    latents = world.pictures(people).latents
    if not masked:
        return Pictures(latents), None
    masks = face_masks(latents)
    return Pictures(latents, masks), masks[0]


def plain_loss(
    base: Base,
    unet: nn.Module,
    text_encoder: nn.Module,
    latents: Tensor,
    prompt: str,
    draw: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
) -> Tensor:
    """The loss of diffusers' training scripts: latents (1, C, h, w), draw = (noise, timestep), mask (1, 1, h, w)."""
    noise, timesteps = draw
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    ids = base.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states = text_encoder(ids)[0]
    predicted = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, states).sample
    error = nn.functional.mse_loss(predicted, scheduler.get_velocity(latents, noise, timesteps), reduction="none")
    return error.mean() if mask is None else torch.sum(error * mask / mask.mean()) / error.numel()


def assert_same(ours: Tensor, plain: Tensor, start: Tensor) -> None:
    """Nearly all numbers end at the same place, and they have moved."""
    assert (ours - start).abs().max() > 0.1 * STEP.lr
    assert ((ours - plain).abs() < TOLERANCE).float().mean() > AGREE


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("text_encoder", [False, True])
def test_dreambooth_steps_as_a_plain_loop(world: World, text_encoder: bool, masked: bool) -> None:
    pictures, mask = photographed(world, 1, masked)
    classes = torch.randn(5, *world.base.latent_shape, generator=torch.Generator().manual_seed(8))
    method = DreamBooth(fit=STEP, objective=OBJECTIVE, text_encoder=text_encoder)
    fitting = method.begin(world.base, pictures, OBJECTIVE, Prior(classes, "a face", weight=0.7))
    list(fitting.run)
    (ours,) = fitting.tensors()

    networks = {"unet": deepcopy(world.base.unet), "text_encoder": deepcopy(world.base.text_encoder)}
    parameters = dict(networks["unet"].requires_grad_(True).named_parameters(prefix="unet"))
    if text_encoder:
        parameters |= dict(networks["text_encoder"].requires_grad_(True).named_parameters(prefix="text_encoder"))
    optimizer = torch.optim.AdamW(parameters.values(), lr=STEP.lr, weight_decay=0.0)
    loss = torch.zeros(())
    of_person, of_class = (pictures.latents[0], "a sks face", 3, 1.0, mask), (classes, "a face", 4, 0.7, None)
    for latents, prompt, seed, weight, places in (of_person, of_class):
        noise, timestep, view = drawn(world, seed, len(latents))
        loss = loss + weight * plain_loss(
            world.base, **networks, latents=latents[view][None], prompt=prompt, draw=(noise, timestep), mask=places
        )
    loss.backward()
    optimizer.step()

    assert ours.keys() == parameters.keys()
    before = dict(world.base.unet.named_parameters(prefix="unet"))
    before |= dict(world.base.text_encoder.named_parameters(prefix="text_encoder"))
    flat = [torch.cat([some[name].detach().flatten() for name in ours]) for some in (ours, parameters, before)]
    assert_same(*flat)


@pytest.mark.parametrize("masked", [False, True])
def test_lora_steps_as_peft(world: World, masked: bool) -> None:
    pictures, mask = photographed(world, 1, masked)
    config = FinetuneConfig("lora", rank=1, where="all", fit=STEP, lr_alone=None, objective=OBJECTIVE)
    tuning = finetune(world.base, world.adapters, pictures.latents, None, config, masks=pictures.masks)
    list(tuning)
    assert tuning.lora is not None
    layout = LoRALayout(world.space.sites, 1)
    start = layout.split(layout.start(OBJECTIVE.seed))

    bare = make_world()  # the same numbers; PEFT takes plain layers alone
    bare.adapters.eject()
    base = bare.base
    networks = {"unet": base.unet, "text_encoder": base.text_encoder}
    for name, network in networks.items():
        paths = [site.path for site in world.space.sites if site.model == name]
        inject_adapter_in_model(LoraConfig(r=1, lora_alpha=1, target_modules=paths), network)
    layers = [networks[site.model].get_submodule(site.path) for site in world.space.sites]
    for layer, (down, _) in zip(layers, start, strict=True):
        weight = layer.lora_A["default"].weight.data  # (r, n), or (r, C, k, k) of a convolution
        weight.copy_(down.view_as(weight))  # B begins at 0, as ours
    trained = [p for network in networks.values() for p in network.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(layers)
    optimizer = torch.optim.AdamW(trained, lr=STEP.lr, weight_decay=0.0)
    noise, timestep, _ = drawn(world, 3, 1)
    latents, draw = pictures.latents[0], (noise, timestep)
    plain_loss(base, base.unet, base.text_encoder, latents, "a sks face", draw, mask).backward()
    optimizer.step()

    both = [(layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in layers]
    plain = layout.pack([(down.flatten(1), up.flatten(1)) for down, up in both])
    assert_same(tuning.lora[0], plain.detach(), layout.start(OBJECTIVE.seed))


@pytest.mark.parametrize("masked", [False, True])
def test_textual_inversion_steps_as_a_plain_loop(world: World, masked: bool) -> None:
    """As diffusers' script does it: the whole table learns, and all rows but the word's are put back."""
    pictures, mask = photographed(world, 3, masked)
    fitting = TextualInversion(fit=STEP, objective=OBJECTIVE).begin(world.base, pictures, OBJECTIVE)
    list(fitting.run)
    tokenizer = world.base.tokenizer
    noun, rare = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("face", "sks"))
    noise, timestep, _ = drawn(world, 3, 1)
    for latents, tensors in zip(pictures.latents, fitting.tensors(), strict=True):
        text_encoder = deepcopy(world.base.text_encoder)
        table = text_encoder.get_input_embeddings().weight
        table.data[rare] = table.data[noun]
        table.requires_grad_(True)
        optimizer = torch.optim.AdamW([table], lr=STEP.lr, weight_decay=0.0)
        plain_loss(world.base, world.base.unet, text_encoder, latents, "a sks face", (noise, timestep), mask).backward()
        optimizer.step()
        assert torch.allclose(tensors["rare_token"], table[rare].detach(), atol=1e-5)
        assert (tensors["rare_token"] - world.base.text_encoder.get_input_embeddings().weight[noun]).abs().max() > 5e-4


def test_prior_pictures_count_as_samples(world: World) -> None:
    pictures, classes = world.pictures(1), torch.randn(5, *world.base.latent_shape)
    method = DreamBooth(fit=STEP, objective=OBJECTIVE)
    for prior, samples in ((None, 1), (Prior(classes), 2)):
        (report,) = method.begin(world.base, pictures, OBJECTIVE, prior).run
        assert report.samples == samples


def test_many_words_at_once_equal_one_by_one(world: World) -> None:
    pictures, method = world.pictures(3), TextualInversion(fit=FitConfig(steps=4, lr=1e-3), objective=OBJECTIVE)

    def words(some: Pictures) -> list[Tensor]:
        fitting = method.begin(world.base, some, OBJECTIVE)
        list(fitting.run)
        return [tensors["rare_token"] for tensors in fitting.tensors()]

    together = words(pictures)
    for n in range(3):
        (alone,) = words(Pictures(pictures.latents[n : n + 1]))
        assert torch.allclose(together[n], alone, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3
