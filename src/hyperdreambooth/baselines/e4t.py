"""E4T (Gal et al., arXiv 2302.12228): an encoder trained beforehand predicts a person's word, then all is tuned.

Pre-training (`pretraining_loss`) learns to say of a face the word that draws it, and one set of weight offsets that is
everybody's and makes the base ready for such words. A person is then some ten steps of large batches from there.

What is ours: the eyes are the hypernetwork's own, frozen, so that the two methods see the same; the offsets live in
the LiDB space of the base, as everything does here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from hyperdreambooth.base.hardware import name_of
from hyperdreambooth.base.memory import hosting
from hyperdreambooth.base.model import Base
from hyperdreambooth.baselines.textual_inversion import said
from hyperdreambooth.baselines.work import Fitting, Settings, TunedWork, Tuning, how_made, noun_embedding, settings_of
from hyperdreambooth.embedded import E4T_NETWORK
from hyperdreambooth.errors import BadFile, UserError, WrongBase
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.fitting.fit import Objective, Pictures, fit
from hyperdreambooth.fitting.plan import digest
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.hypernetwork.loss import People, denoising_together
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.lidb import Adapters
from hyperdreambooth.personalization import Photos
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.tuned import WORD

FORMAT = "hyperdreambooth-e4t-1"
_HIDDEN = 256


class E4TNetwork(nn.Module):
    """A face's features to the offset of its word from the class noun's; and everybody's weight offsets.

    Args:
        features: D of the encoder.
        word: numbers of a word's embedding.
        start: (S, 1, a + b), the space's start, where the offsets begin: they change nothing yet.
    """

    def __init__(self, features: int, word: int, start: Tensor) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, word)
        )
        nn.init.normal_(self.head[-1].weight, std=1e-3)  # at first everybody is "face"
        nn.init.zeros_(self.head[-1].bias)
        self.offsets = nn.Parameter(start.clone())  # (S, 1, a + b)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, F, D), the whole face's first -> offsets of words (N, W)."""
        offsets: Tensor = self.head(features[:, 0])
        return offsets

    def save(self, path: str | Path, base: str, base_name: str) -> None:
        """Write one safetensors file, in float16, of a base with this fingerprint."""
        tensors = {name: tensor.half() for name, tensor in self.state_dict().items()}
        save_tensors(path, tensors, {"format": FORMAT, "base": base, "base_name": base_name})

    @classmethod
    def load(cls, path: str | Path, booth: HyperDreamBooth) -> E4TNetwork:
        """Read the file for this base; float32, frozen.

        Raises:
            BadFile: not a whole, sound file of E4T. WrongBase: made for another base.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != FORMAT:
            raise BadFile(f"{path} holds {metadata.get('format', 'no format')}, expected {FORMAT}: pre-train it anew")
        if metadata["base"] != booth.fingerprint:
            raise WrongBase.of(path, metadata["base"], metadata["base_name"], booth.fingerprint, booth.base.name)
        network = e4t_network(booth)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:80]
            raise BadFile(f"{path} is damaged ({reason}), expected a sound E4T network: pre-train it anew") from error
        network.eval().requires_grad_(False)
        return network


def e4t_network(booth: HyperDreamBooth) -> E4TNetwork:
    """A fresh one for this base and the eyes of its hypernetwork, on the base's device. Raises UserError without."""
    width = _hypernetwork(booth).encoder.width
    word = noun_embedding(booth.base).numel()
    network = E4TNetwork(width, word, booth.space.rule.start())
    network.to(booth.base.device)
    return network


def pretraining_loss(
    network: E4TNetwork,
    eyes: nn.Module,
    base: Base,
    adapters: Adapters,
    people: People,
    rows: Tensor,
    noises: int,
    pull: float,
    generator: torch.Generator,
) -> Tensor:
    """The mean denoising loss of n people under the words that are predicted of them; a scalar.

    Args:
        network, eyes: what is trained, and the frozen encoder before it.
        base, adapters: whose adapters wear the offsets.
        people, rows: n of them, of one world.
        noises: K, draws of a view, a noise and a timestep, everybody's alike.
        pull: weighs the squared length of a word's offset, mean over its numbers: words stay near the class noun's.
        generator: of the draws, on the CPU.
    """
    seen = torch.randint(people.plain, (), generator=generator)
    with torch.no_grad():
        features = eyes(people.pictures[rows, seen].to(base.device).float() / 255)  # (n, F, D)
    offsets = network(features)  # (n, W)
    worn = network.offsets.expand(len(rows), *network.offsets.shape)  # (n, S, 1, a + b)
    with said(base, noun_embedding(base) + offsets):
        losses = denoising_together(base, adapters, worn, people, rows, noises, "a [V] face", generator)
    return losses.mean() + pull * offsets.square().mean()


@dataclass(frozen=True)
class E4T(Tuning):
    """How a person is tuned after the word is predicted: a few steps of many noises, of U-Net and word."""

    name: str = "e4t"
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=15, lr=1e-4))
    objective: Objective = field(default_factory=lambda: Objective(noises=16))
    network: Path = E4T_NETWORK
    at_once: ClassVar[int] = 1  # each has a copy of all weights

    def settings_on(self, booth: HyperDreamBooth) -> Settings:
        """Every setting, and the numbers of what was trained beforehand in the place of where they lie."""
        trained = digest(*load_tensors(self.network)[0].values()) if self.network.is_file() else "none"
        return settings_of(replace(self, network=Path(trained)))

    def check(self, booth: HyperDreamBooth) -> None:
        """Raise UserError where nothing was pre-trained, or for another base, this one has no hypernetwork, whose eyes
        it needs, or is in half precision, in which the offsets and most of a step would be lost."""
        self._checked(booth)

    def _checked(self, booth: HyperDreamBooth) -> E4TNetwork:
        """What was pre-trained, for this base. Raises as `check`."""
        _hypernetwork(booth)
        if booth.base.dtype != torch.float32:
            raise UserError(
                f"{self.name} got a base in {name_of(booth.base.dtype)}, expected fp32, in which weights are fitted: "
                "--precision fp32"
            )
        if not self.network.is_file():
            raise UserError(
                f"{self.name} needs the file {self.network}, which is not there: make it by the recipe's stage e4t"
            )
        try:
            return E4TNetwork.load(self.network, booth)
        except WrongBase as error:
            raise WrongBase(f"{error}, or leave {self.name} out of --methods") from error

    def personalizing(self, booth: HyperDreamBooth, photos: Sequence[Photos], seed: int = 0) -> TunedWork:
        """N photographs, one person after the other. Raises as `check`."""
        network, eyes = self._checked(booth), _hypernetwork(booth).encoder
        objective = replace(self.objective, seed=seed)

        def begin(base: Base, pictures: Pictures, faces: Tensor) -> Fitting:
            with torch.no_grad():
                with hosting(base, eyes):
                    features = eyes(faces.to(base.device))  # (1, F, D)
                word = noun_embedding(base) + network(features)  # (1, W)
            return self.begin(_with_offsets(booth, network.offsets), pictures, word, objective)

        how = how_made(self.name, self.fit, objective)
        return TunedWork(booth, photos, begin, how, objective.prompt)

    def begin(self, tuned: Base, pictures: Pictures, word: Tensor, objective: Objective) -> Fitting:
        """The fit of one person on a copy of the base with everybody's offsets, from the predicted word (1, W)."""
        word = word.detach().clone().requires_grad_()
        parameters: dict[str, Tensor] = {f"unet.{name}": p for name, p in tuned.unet.named_parameters()}
        for parameter in parameters.values():
            parameter.requires_grad_()
        run = fit(tuned, parameters | {WORD: word}, lambda: said(tuned, word), pictures, objective, self.fit)
        read = {f"text_encoder.{name}": p for name, p in tuned.text_encoder.named_parameters()}

        def tensors() -> list[Mapping[str, Tensor]]:
            own = {name: p.detach().cpu() for name, p in (read | dict(run.averages)).items()}
            return [own | {WORD: own[WORD][0]}]

        return Fitting(run, tensors)


def _with_offsets(booth: HyperDreamBooth, offsets: Tensor) -> Base:
    """A copy of the base's networks with everybody's offsets (S, 1, a + b) merged into them."""
    base = booth.base
    booth.adapters.merge(offsets)
    try:
        return base.with_networks(deepcopy(base.text_encoder), deepcopy(base.unet))
    finally:
        booth.adapters.unmerge()


def _hypernetwork(booth: HyperDreamBooth) -> HyperNetwork:
    if booth.hypernetwork is None:
        raise UserError(
            f'e4t needs the eyes of a hypernetwork, and there is none for the base "{booth.base.name}": train one first'
        )
    return booth.hypernetwork
