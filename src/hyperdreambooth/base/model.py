"""The base: a frozen text-to-image latent diffusion model in the layout of Stable Diffusion 1, 2 or SDXL.

Pictures are float32 (N, 3, H, W) in [0, 1] everywhere outside this module. Latents are (N, C, h, w), scaled so that
they have about unit variance. Adapters may sit in every one of `adapted`: everything here works with them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from hyperdreambooth.base.fingerprint import fingerprint_of
from hyperdreambooth.base.libraries import quiet
from hyperdreambooth.base.prompting import SecondText, pack, time_ids, unpack
from hyperdreambooth.base.sampling import Predict, denoised, started
from hyperdreambooth.files import write_folder

CARD_FILE = "hyperdreambooth.json"
_LATENTS_AT_ONCE = 64 * 64 * 4  # places in the latents of the pictures that are drawn together
_PLACEHOLDER = re.compile(r"\[v\]", re.IGNORECASE)
_LARGEST_FILE = "14MB"  # what is shipped in the package stays under 15 MB a file
_WEIGHTS = "*.safetensors*"  # files of a network, and the index of its shards


@dataclasses.dataclass(frozen=True)
class Card:
    """What a base says of itself beyond its networks; the defaults are those of Stable Diffusion 1.5.

    rare_token stands for "[V]"; a, b, seed, scale: its LiDB space (eq. 1); closed_vocabulary: a word that is not one
    token was never seen in training; seldom: what it was measured to draw seldom, phrases with commas between.
    """

    name: str
    rare_token: str = "sks"
    class_noun: str = "face"
    a: int = 100
    b: int = 50
    seed: int = 0
    scale: float = 1.0
    picture_size: int = 512
    closed_vocabulary: bool = False
    seldom: str = ""


class Base:
    """VAE, text encoder, tokenizer, U-Net and noise schedule, frozen and in evaluation mode, under one card.

    second: SDXL's second text encoder; None for a base of one.
    home: where networks work that wait on the CPU in between, see `offload`; None for those that stay where they are.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        card: Card,
        second: SecondText | None = None,
    ) -> None:
        self.vae, self.text_encoder, self.tokenizer, self.unet = vae, text_encoder, tokenizer, unet
        self.scheduler, self.card, self.second = scheduler, card, second
        self.at_once = max(1, _LATENTS_AT_ONCE // math.prod(self.latent_shape[1:]))
        self.home: torch.device | None = None
        for network in self._networks:
            network.eval().requires_grad_(False)

    @property
    def adapted(self) -> dict[str, nn.Module]:
        """The networks that may carry a person, in order of execution: text encoders, U-Net."""
        second = {} if self.second is None else {"text_encoder_2": self.second.text_encoder}
        return {"text_encoder": self.text_encoder, **second, "unet": self.unet}

    @property
    def _networks(self) -> tuple[nn.Module, ...]:
        return self.vae, *self.adapted.values()

    @property
    def name(self) -> str:
        """The name that people know the base by."""
        return self.card.name

    @property
    def rare_token(self) -> str:
        """The word that stands for "[V]"."""
        return self.card.rare_token

    @property
    def class_noun(self) -> str:
        """What every person is an instance of: "face"."""
        return self.card.class_noun

    @property
    def picture_size(self) -> int:
        """Height and width of the pictures that the base was trained on."""
        return self.card.picture_size

    @property
    def device(self) -> torch.device:
        """Where the networks work."""
        return self.home or next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the networks."""
        return next(self.unet.parameters()).dtype

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: "epsilon", "v_prediction" or "sample"."""
        return str(self.scheduler.config.prediction_type)

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels of the schedule."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        side = self.picture_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.vae.config.latent_channels, side, side

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that tell two bases apart: `fingerprint_of` the text encoders and the U-Net.

        Taken once, when it is first asked for or before the precision changes, whichever is sooner: merging an identity
        or casting does not change which base this is. Trained weights are loaded before that, or into a new Base.
        """
        return fingerprint_of(*self.adapted.values())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Base:
        """Move the networks, in place, to a device and a precision (None: as it is); returns itself.

        SDXL's VAE, whose activations overflow in float16, then stays in float32.
        """
        if dtype not in (None, self.dtype):
            _ = self.fingerprint  # of the numbers before they are rounded
        device, dtype = torch.device(device or self.device), dtype or self.dtype
        overflows = self.second is not None and self.vae.config.force_upcast and dtype == torch.float16
        for network in self._networks:
            own = torch.float32 if overflows and network is self.vae else dtype
            nn.Module.to(network, device="cpu" if self.home else device, dtype=own)  # diffusers' own `to` warns
        self.home = device if self.home else None
        return self

    def offload(self, device: torch.device | None = None) -> None:
        """The networks go to the CPU, and from now on work on a device (None: theirs), those needed together."""
        self.home = device or self.device
        for network in self._networks:
            nn.Module.to(network, device="cpu")

    def _bring(self, *networks: nn.Module) -> None:
        """With `offload`: these to the device, the others to the CPU. A fit needs all but the VAE until it is done."""
        if self.home is None:
            return
        if torch.is_grad_enabled() and self.vae not in networks:
            networks = tuple(self.adapted.values())
        with torch.inference_mode(False):  # a parameter moved inside would never be trained again
            for network in self._networks:
                nn.Module.to(network, device=self.home if network in networks else "cpu")

    def with_networks(self, text_encoder: nn.Module | None = None, unet: nn.Module | None = None) -> Base:
        """A base with these networks in the place of its own; whatever is not given is shared."""
        own = self.text_encoder if text_encoder is None else text_encoder, self.unet if unet is None else unet
        base = Base(self.vae, own[0], self.tokenizer, own[1], self.scheduler, self.card, self.second)
        base.at_once, base.home = self.at_once, self.home
        return base

    def encode_pictures(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] to float32 latents (N, C, h, w): the posterior's mean, or a draw from it."""
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"got pictures of shape {tuple(pictures.shape)}, expected (N, 3, H, W)")
        self._bring(self.vae)
        posterior = self.vae.encode((pictures * 2 - 1).to(self.device, self.vae.dtype)).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return latents.float() * self.vae.config.scaling_factor  # (N, C, h, w)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w) to float32 pictures (N, 3, H, W) in [0, 1]."""
        self._bring(self.vae)
        decoded = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.device, self.vae.dtype)).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1)  # (N, 3, H, W)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts, "[V]" standing for the rare token, to text states (N, L, D); "" is the unconditional prompt.

        SDXL's are the last but one states of both text encoders side by side, then the pooled embedding: see `pack`.
        """
        self._bring(*(network for network in self.adapted.values() if network is not self.unet))
        if self.second is None:
            states: Tensor = self.text_encoder(self.tokens(prompts))[0]  # (N, L, D)
            return states
        first = self.text_encoder(self.tokens(prompts), output_hidden_states=True)
        other = self.second.text_encoder(self._ids(self.second.tokenizer, prompts), output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], other.hidden_states[-2]], dim=-1)  # (N, L - 1, D)
        packed = pack(states, other.text_embeds)  # (N, L, D)
        if not self.second.empty_is_zero:
            return packed
        return packed * torch.tensor([[[float(prompt != "")]] for prompt in prompts]).to(packed)

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """What the (first) text encoder reads of prompts, cut or padded to its length: token numbers (N, L)."""
        return self._ids(self.tokenizer, prompts)

    def _ids(self, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
        """Token numbers (N, L) on the device."""
        length, texts = tokenizer.model_max_length, [self.spell(prompt) for prompt in prompts]
        ids = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return torch.as_tensor(ids.input_ids, device=self.device)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that the base never saw in training, in order; always empty for an open vocabulary."""
        if not self.card.closed_vocabulary:
            return []
        words = dict.fromkeys(re.findall(r"[^\W\d_]+", self.spell(prompt).lower()))
        return [word for word in words if len(self.tokenizer.tokenize(word)) > 1]

    def spell(self, prompt: str) -> str:
        """The prompt as the tokenizer sees it: the rare token in the place of "[V]"."""
        return _PLACEHOLDER.sub(self.rare_token, prompt)

    def noise_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """How much picture and how much noise there is at integer timesteps (N,): two float32 (N, 1, 1, 1).

        The noisy latents are signal * x + sigma * eps, with signal^2 + sigma^2 = 1.
        """
        kept = self.scheduler.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps].view(-1, 1, 1, 1)
        return kept.sqrt(), (1 - kept).sqrt()

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Pure noise to start sampling from, (count, C, h, w): a CPU generator gives the same one on every device."""
        return torch.randn((count, *self.latent_shape), generator=generator, device=generator.device).to(self.device)

    def predict(self, latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """The U-Net's raw output (N, C, h, w), in the terms of `prediction_type`.

        latents: noisy, (N, C, h, w); timesteps: (N,) or (); states: (N, L, D).
        """
        self._bring(self.unet)
        latents, states, added = latents.to(self.dtype), states.to(self.dtype), None
        if self.second is not None:
            states, pooled = unpack(states, self.second.text_encoder.config.projection_dim)
            added = {"text_embeds": pooled, "time_ids": time_ids(len(latents), self.picture_size, pooled)}
        output: Tensor = self.unet(
            latents, timesteps, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False
        )[0]
        return output

    def sample(
        self,
        states: Tensor,
        unconditional: Tensor,
        latents: Tensor,
        steps: int = 25,
        guidance: float = 3.0,
        progress: Callable[[int, int], None] | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Draw N pictures in one batch: from noise (N, C, h, w) to clean latents of the same shape.

        states: (N, L, D); unconditional: (N, L, D), or (1, L, D) for all; guidance: classifier-free, off at 1 or less.
        The U-Net sees 2 N rows, [unconditional ; conditional]. `progress(done, steps)` is called after every step.
        generators: N on the CPU, of the noise that a stochastic sampler adds on its way; without them it takes torch's
        own.
        """
        if guidance <= 1:
            return self.sample_mixed(states.unsqueeze(0), [1.0], latents, steps, progress, generators)
        rows = torch.stack([unconditional.expand_as(states), states])  # (2, N, L, D)
        return self.sample_mixed(rows, [1.0 - guidance, guidance], latents, steps, progress, generators)

    def sample_mixed(
        self,
        states: Tensor,
        factors: Sequence[float],
        latents: Tensor,
        steps: int = 25,
        progress: Callable[[int, int], None] | None = None,
        generators: Sequence[torch.Generator] | None = None,
        predict: Predict | None = None,
        rescale: float = 0.0,
    ) -> Tensor:
        """Draw N pictures in one batch by K answers to each: at every step, the sum of factor times answer counts.

        Every kind of guidance is such a sum: classifier-free guidance g that of (1 - g) times the answer to no prompt
        and g times the answer to the prompt. What the adapters wear may differ from answer to answer.

        Args:
            states: (K, N, L, D). The U-Net sees K N rows, all N of the first answer first.
            factors: K, of sum 1.
            latents, steps, progress, generators: as in `sample`.
            predict: who answers, all K N rows at once, as `predict` does; None is this base.
            rescale: how far the sum is brought back to the spread of its last answer, see `sampling.rescaled`.
        """
        scheduler, latents = started(self.scheduler, steps, self.device), latents.to(self.device)
        predict = predict or self.predict
        with torch.inference_mode():
            drawn = denoised(scheduler, predict, states, factors, latents, rescale, progress, generators)
        return drawn.clone()  # outside inference mode: an ordinary tensor, fit for training too

    def evaluations(self, steps: int) -> int:
        """How often the U-Net is asked for one answer in so many steps: some samplers ask more than once a step."""
        return len(started(self.scheduler, steps).timesteps)

    def save(
        self,
        folder: str | Path,
        dtype: torch.dtype = torch.float16,
        largest_file: str | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Write a diffusers folder that plain `StableDiffusionPipeline.from_pretrained` opens, and the card in it.

        Of SDXL, one that `StableDiffusionXLPipeline` opens.

        Args:
            folder: made, or filled: its own files under other names stay.
            dtype: of the numbers.
            largest_file: size beyond which a network is written in several files, such as "5GB"; None is 14 MB.
            texts: further files by name, in UTF-8.
        """
        pipeline = self._pipeline(dtype)
        written = set[Path]()

        def write(part: Path) -> None:
            with quiet():
                pipeline.save_pretrained(part, safe_serialization=True, max_shard_size=largest_file or _LARGEST_FILE)
            written.update(path.relative_to(part) for path in part.rglob(_WEIGHTS))
            # transformers opens a model in the precision that its config names, diffusers in float32: plain
            # from_pretrained would mix the two.
            for config in part.glob("text_encoder*/config.json"):
                _write_json(config, json.loads(config.read_text()) | {"dtype": "float32"})
            _write_json(part / CARD_FILE, dataclasses.asdict(self.card))
            for name, text in (texts or {}).items():
                (part / name).write_text(text, encoding="utf-8")

        write_folder(folder, write)
        for network in {path.parent for path in written}:
            for stale in {path.relative_to(folder) for path in (Path(folder) / network).glob(_WEIGHTS)} - written:
                (Path(folder) / stale).unlink()  # a base of other shards was here, and its index would win

    def _pipeline(self, dtype: torch.dtype) -> DiffusionPipeline:
        """The base as diffusers has it: the networks on the CPU in this precision, copies where they are not so."""
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # needed here alone, slow to import

        vae, text_encoder, *second, unet = (_as(network, dtype) for network in self._networks)
        parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": self.tokenizer, "unet": unet}
        parts |= {"scheduler": self.scheduler, "feature_extractor": None}
        if self.second is None:
            return StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
        return StableDiffusionXLPipeline(
            **parts,
            text_encoder_2=second[0],
            tokenizer_2=self.second.tokenizer,
            force_zeros_for_empty_prompt=self.second.empty_is_zero,
            add_watermarker=False,
        )


def _as(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A network on the CPU in a precision, which shares its numbers with the given one where that is so already."""
    if all(p.device.type == "cpu" and p.dtype == dtype for p in network.parameters()):
        return copy(network)  # a pipeline may change its config
    return nn.Module.to(deepcopy(network), "cpu", dtype)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
