"""Tiny random models in Stable Diffusion's layout, built from configs."""

from dataclasses import dataclass

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from hyperdreambooth.lidb import Adapters, LiDBSpace, find_blocks, find_sites, inject

WIDTH = 16  # of the text states and of the narrowest block


def tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(WIDTH, 2 * WIDTH),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
    )


def narrow_unet() -> UNet2DConditionModel:
    """Every block of Stable Diffusion 1.5, 40 times as narrow."""
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 32, 32), attention_head_dim=2, norm_num_groups=4,
        cross_attention_dim=WIDTH,
    )  # fmt: skip


def tiny_text_encoder(layers: int = 2) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


@dataclass
class World:
    """A tiny model, its space, inputs of four rows, and what it draws."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    space: LiDBSpace

    @property
    def models(self) -> dict[str, torch.nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def inject(self) -> Adapters:
        return inject(self.models, self.space)

    def persons(self, count: int, ranks: int = 1, seed: int = 0) -> torch.Tensor:
        """(N, S, R, a + b): persons strong enough to change the output by far more than rounding."""
        random = torch.Generator().manual_seed(seed)
        return 0.7 * torch.randn(count, len(self.space.sites), ranks, self.space.width, generator=random)

    def inputs(self, rows: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents (rows, 4, 8, 8), timesteps (rows,) and tokens (rows, 12)."""
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randint(2, 40, (rows, 12), generator=random)
        tokens[:, -1] = 1
        latents = torch.randn(rows, 4, 8, 8, generator=random)
        return latents, torch.randint(0, 1000, (rows,), generator=random), tokens

    def draw(self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(rows, 4, 8, 8): the U-Net's output under the text encoder's states, both as they are worn now."""
        states = self.text_encoder(tokens).last_hidden_state
        output: torch.Tensor = self.unet(latents, timesteps, states).sample
        return output


@pytest.fixture
def world() -> World:
    torch.manual_seed(0)
    unet, text_encoder = tiny_unet().eval(), tiny_text_encoder().eval()
    return World(unet, text_encoder, LiDBSpace(find_sites(unet, text_encoder), a=6, b=5, seed=3, scale=0.8))


@pytest.fixture(scope="module")
def narrow_world() -> World:
    """192 sites, as in Stable Diffusion 1.5."""
    torch.manual_seed(0)
    unet, text_encoder = narrow_unet().eval(), tiny_text_encoder(12).eval()
    return World(unet, text_encoder, LiDBSpace(find_sites(unet, text_encoder), a=6, b=5, seed=3, scale=0.8))


@pytest.fixture(scope="module")
def whole_world(narrow_world: World) -> World:
    """The same with the 80 layers of the residual blocks behind them, as people have them by default."""
    rule = narrow_world.space
    sites = (*rule.sites, *find_blocks(narrow_world.unet))
    space = LiDBSpace(sites, rule.a, rule.b, rule.seed, rule.scale, rule_sites=len(rule.sites))
    return World(narrow_world.unet, narrow_world.text_encoder, space)


def pipeline_of(world: World) -> StableDiffusionPipeline:
    """A pipeline of diffusers around a world's models, which stay its own."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    parts = {"vae": vae, "text_encoder": world.text_encoder, "unet": world.unet, "scheduler": scheduler}
    absent = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
    made = StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def picture(pipeline: StableDiffusionPipeline, world: World, **more: object) -> torch.Tensor:
    """(1, 16, 16, 3) in [0, 1], guided, of fixed tokens and latents."""
    latents, _, tokens = world.inputs(rows=2)
    states = pipeline.text_encoder(tokens).last_hidden_state  # (2, L, D): unconditional, conditional
    drawn = pipeline(
        prompt_embeds=states[1:],
        negative_prompt_embeds=states[:1],
        latents=latents[:1],
        num_inference_steps=3,
        output_type="np",
        **more,
    )
    return torch.from_numpy(drawn.images)
