"""Stage: U-Net and text encoder together, on cached latents of both worlds, by the denoising loss."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hyperdreambooth.base.diffusion import denoising_loss
from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import UserError
from hyperdreambooth.files import save_tensors
from hyperdreambooth.fitting.plan import digest
from hyperdreambooth.fitting.processes import ALONE, Processes
from hyperdreambooth.photographs import as_floats
from hyperdreambooth.portraits.captions import Scene, training_caption
from hyperdreambooth.portraits.person import Person
from recipes.parts import Part, parts, remove_parts
from recipes.pictures import COLOURED, Pictures

CAPTION_DROPPED = 0.1  # for classifier-free guidance
SHAPES_AGAIN = 3.0  # times as often as others are pictures shown whose caption asks for another shape, such as a hat
WORDS_WEIGHT = 0.1  # of the loss of the words beside the denoising loss


@dataclass(frozen=True)
class Latents:
    """The latents (N, C, h, w) float16 of `Pictures`, with what each one shows."""

    latents: Tensor
    scenes: tuple[Scene, ...]
    people: tuple[int, ...]

    def shares(self) -> Tensor:
        """How often each one is shown, (N,), in no unit."""
        shapes = [s.domain is not None or s.edit not in (None, *COLOURED) for s in self.scenes]
        return torch.where(torch.tensor(shapes), SHAPES_AGAIN, 1.0)


def joined(parts: Sequence[Latents]) -> Latents:
    """All latents of the parts, in their order."""
    return Latents(
        torch.cat([part.latents for part in parts]),
        tuple(scene for part in parts for scene in part.scenes),
        tuple(person for part in parts for person in part.people),
    )


def networks(base: Base) -> dict[str, nn.Module]:
    """What this stage trains, by name."""
    return {"unet": base.unet, "text_encoder": base.text_encoder}


def parameters(base: Base) -> dict[str, Tensor]:
    """Everything that this stage trains, by name of the network and its own."""
    return {
        f"{name}.{own}": tensor
        for name, network in networks(base).items()
        for own, tensor in network.named_parameters()
    }


def word_reader(base: Base) -> nn.Linear:
    """What says, from the mean state of a prompt (D), which words of the vocabulary stand in it; it does not ship.

    By the denoising loss alone the states of prompts with and without a word that changes few pixels, such as a hat,
    stay nearly the same, and the U-Net never learns to tell them apart: text encoders are usually trained beforehand.
    """
    reader = nn.Linear(base.text_encoder.config.hidden_size, len(base.tokenizer))
    nn.init.zeros_(reader.weight)
    nn.init.zeros_(reader.bias)
    return reader.to(base.device)


def words_loss(base: Base, reader: nn.Module, captions: Sequence[str], states: Tensor) -> Tensor:
    """How badly the words of captions are read from their states (N, L, D).

    The cross-entropy of a softmax over the vocabulary, to equal shares of the words that stand in a caption.
    """
    logs = reader(states.mean(dim=1)).log_softmax(dim=1)  # (N, V); the U-Net looks at all of them
    said = torch.zeros_like(logs).scatter_(1, base.tokens(captions), 1.0)
    said[:, base.tokenizer.all_special_ids] = 0.0  # which stand in every prompt
    return -(logs * said / said.sum(dim=1, keepdim=True).clamp(min=1.0)).sum(dim=1).mean()


def load(base: Base, weights: Mapping[str, Tensor]) -> None:
    """Take what `parameters` gave of another base of these sizes."""
    for name, network in networks(base).items():
        own = {key.removeprefix(f"{name}."): t for key, t in weights.items() if key.startswith(f"{name}.")}
        network.load_state_dict(own)


def encode(base: Base, pictures: Pictures, path: Path, batch: int = 100, together: int = 50) -> Iterator[str]:
    """Write the latents (N, C, h, w) float16 of all pictures into a file, unless it is there.

    Yields a line per `together` batches, which is also what a stop costs: the next call goes on behind them.

    Raises:
        DiskFull, WorkError: while iterating; what is finished stays.
    """
    if path.exists():
        remove_parts(path)
        return
    some = pictures.pictures.split(batch * together)  # (n, 3, S, S) each

    def make(numbers: list[int]) -> Generator[Part]:
        for number in numbers:
            with torch.no_grad():
                encoded = [base.encode_pictures(as_floats(few)).half().cpu() for few in some[number].split(batch)]
            yield {"latents": torch.cat(encoded)}, {}

    vae = f"{digest(*base.vae.state_dict().values())} {base.vae.config.scaling_factor}"
    contents = [f"{vae} {digest(part)} by {batch}" for part in some]
    latents, done = list[Tensor](), 0
    for part, (tensors, _) in zip(some, parts(path, contents, make), strict=True):
        latents.append(tensors["latents"])
        done += len(part)
        yield f"{done} of {len(pictures)} pictures encoded"
    save_tensors(path, {"latents": torch.cat(latents)})
    remove_parts(path)


def training_loss(
    base: Base,
    worlds: tuple[Latents, ...],
    batch: int,
    generator: torch.Generator,
    reader: nn.Module,
    processes: Processes = ALONE,
) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    """The loss of a step: samples of the worlds in equal shares, each with fresh caption, noise and timestep.

    Denoising and a little of `words_loss`; the metrics are each by itself.

    Args:
        base: on its device; the latents may stay on the CPU.
        worlds: what there is to draw; one that stands there twice has two shares.
        batch: samples of all worlds together; a multiple of their number.
        generator: on the CPU, of everything that is drawn.
        reader: see `word_reader`; learns with the base.
        processes: those that share every batch.

    Raises:
        UserError: the processes or the worlds cannot share it evenly.
    """
    processes.check_share(batch, "samples")
    if batch % len(worlds):
        raise UserError(f"got {batch} samples in a batch, expected a multiple of {len(worlds)}, the shares of worlds")
    shown = [world.shares() for world in worlds]

    def loss(_step: int) -> tuple[Tensor, dict[str, float]]:
        drawn = [
            _draw(world, shares, batch // len(worlds), generator) for world, shares in zip(worlds, shown, strict=True)
        ]
        latents = torch.cat([latents for latents, _ in drawn])  # (N, C, h, w)
        captions = [caption for _, captions in drawn for caption in captions]  # N
        # The timesteps of a batch are spread evenly over all noise levels.
        spread = (torch.rand(1, generator=generator) + torch.arange(len(latents)) / len(latents)) % 1.0
        timesteps = (spread * base.timesteps).long()[torch.randperm(len(latents), generator=generator)]  # (N,)
        noise = torch.randn(latents.shape, generator=generator)
        latents, timesteps, noise = (processes.share(t).to(base.device) for t in (latents, timesteps, noise))
        captions = processes.share(captions)
        states = base.encode_prompts(captions)  # (N, L, D)
        # Plain errors: min-SNR takes the weight off the noisiest levels, where faces form.
        denoising = denoising_loss(base, latents, states, timesteps, noise).mean()
        words = words_loss(base, reader, captions, states)
        return denoising + WORDS_WEIGHT * words, {
            "denoising": float(denoising.detach()),
            "words": float(words.detach()),
        }

    return loss


def _draw(world: Latents, shares: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """`count` random pictures of a world, as latents and captions."""
    rows = torch.multinomial(shares, count, replacement=True, generator=generator)
    random = np.random.RandomState(int(torch.randint(2**31, (), generator=generator)))
    captions = [
        "" if random.rand() < CAPTION_DROPPED else _caption(world.scenes[row], world.people[row], random)
        for row in rows.tolist()
    ]
    return world.latents[rows].float(), captions


def _caption(scene: Scene, person: int, random: np.random.RandomState) -> str:
    return training_caption(scene, Person(person) if person >= 0 else None, random)
