"""A fresh base with random weights, from a preset: where the training of the embedded base starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hyperdreambooth.base.model import Base, Card
from hyperdreambooth.base.tokenizer import build_tokenizer

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
_UP = {CROSS_DOWN: "CrossAttnUpBlock2D", PLAIN_DOWN: "UpBlock2D"}


@dataclass(frozen=True)
class BasePreset:
    """Sizes of a base in Stable Diffusion's layout, and of its LiDB space.

    The VAE halves the picture between any two of `vae_channels`, the U-Net its latents between any two of
    `unet_channels`. `unet_blocks` are the U-Net's blocks on the way down; those on the way up mirror them.
    """

    name: str
    picture_size: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    latent_channels: int
    unet_channels: tuple[int, ...]
    unet_blocks: tuple[str, ...]
    unet_layers: int
    unet_heads: int
    text_hidden: int
    text_layers: int
    text_heads: int
    text_length: int
    norm_groups: int
    a: int
    b: int
    rare_token: str = "sks"
    class_noun: str = "face"


PRESETS = {
    # For tests: a forward pass takes milliseconds, every kind of layer is there.
    "tiny": BasePreset(
        name="tiny",
        picture_size=16,
        vae_channels=(16, 32),
        vae_layers=1,
        latent_channels=4,
        unet_channels=(16, 32),
        unet_blocks=(CROSS_DOWN, CROSS_DOWN),
        unet_layers=1,
        unet_heads=2,
        text_hidden=32,
        text_layers=2,
        text_heads=2,
        text_length=16,
        norm_groups=8,
        a=12,
        b=8,
    ),
    "small": BasePreset(
        name="embedded",
        picture_size=64,
        vae_channels=(16, 32, 64),
        vae_layers=1,
        latent_channels=4,
        unet_channels=(48, 96, 192),
        unet_blocks=(PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN),
        unet_layers=1,
        unet_heads=4,
        text_hidden=128,
        text_layers=2,
        text_heads=4,
        text_length=32,
        norm_groups=8,
        a=64,
        b=32,
    ),
}


def build_base(preset: BasePreset, words: Iterable[str], seed: int = 0) -> Base:
    """A base with random weights that depend on `seed` alone; `words` is all that its prompts can say.

    The rare token and the class noun are added to `words`. Float32, on the CPU.
    """
    tokenizer = build_tokenizer([*words, preset.rare_token, preset.class_noun], preset.text_length)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        # The text encoder last: the others' numbers do not depend on how many words there are.
        vae, unet, text_encoder = _vae(preset), _unet(preset), _text_encoder(preset, tokenizer)
    card = Card(
        name=preset.name,
        rare_token=preset.rare_token,
        class_noun=preset.class_noun,
        a=preset.a,
        b=preset.b,
        picture_size=preset.picture_size,
        closed_vocabulary=True,
    )
    return Base(vae, text_encoder, tokenizer, unet, _scheduler(), card)


def _vae(preset: BasePreset) -> AutoencoderKL:
    levels = len(preset.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=preset.vae_channels,
        layers_per_block=preset.vae_layers,
        latent_channels=preset.latent_channels,
        norm_num_groups=preset.norm_groups,
        sample_size=preset.picture_size,
        scaling_factor=1.0,  # the recipe sets it from the spread of the trained latents
    )


def _text_encoder(preset: BasePreset, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.text_hidden,
        intermediate_size=4 * preset.text_hidden,
        projection_dim=preset.text_hidden,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=preset.text_heads,
        max_position_embeddings=preset.text_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _unet(preset: BasePreset) -> UNet2DConditionModel:
    factor = 2 ** (len(preset.vae_channels) - 1)
    return UNet2DConditionModel(
        sample_size=preset.picture_size // factor,
        in_channels=preset.latent_channels,
        out_channels=preset.latent_channels,
        block_out_channels=preset.unet_channels,
        down_block_types=preset.unet_blocks,
        up_block_types=tuple(_UP[block] for block in reversed(preset.unet_blocks)),
        layers_per_block=preset.unet_layers,
        attention_head_dim=preset.unet_heads,  # the number of heads: diffusers keeps the name for old checkpoints
        cross_attention_dim=preset.text_hidden,
        norm_num_groups=preset.norm_groups,
    )


def _scheduler() -> DPMSolverMultistepScheduler:
    """Cosine noise levels (Nichol & Dhariwal) down to almost no signal, v-prediction, stochastic DPM-Solver++ 2M.

    "trailing" spacing starts sampling at the very last timestep, the one that is pure noise as sampling's start is. The
    noise that is added on the way makes good what a small network gets wrong early: see docs/notes.md.
    """
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        steps_offset=1,  # without meaning here, but StableDiffusionPipeline calls any other value outdated
    )
