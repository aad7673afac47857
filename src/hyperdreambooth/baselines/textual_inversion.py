"""Textual Inversion (Gal et al., arXiv 2208.01618): the embedding of one word is the person, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hyperdreambooth.base.model import Base
from hyperdreambooth.baselines.work import Fitting, TunedWork, Tuning, how_made, noun_embedding
from hyperdreambooth.fitting.fit import Objective, Pictures, fit
from hyperdreambooth.fitting.steps import FitConfig
from hyperdreambooth.personalization import Photos
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.tuned import WORD, rare_token_id, word_embeddings


@dataclass(frozen=True)
class TextualInversion(Tuning):
    """How a word is fitted; it begins as the class noun's. People share a batch: their words do not touch."""

    name: str = "textual-inversion"
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=5000, lr=2e-2))
    objective: Objective = field(default_factory=lambda: Objective(noises=1))
    at_once: int = 16  # people in a batch

    def personalizing(self, booth: HyperDreamBooth, photos: Sequence[Photos], seed: int = 0) -> TunedWork:
        """N photographs, some at once."""
        objective = replace(self.objective, seed=seed)

        def begin(base: Base, pictures: Pictures, _faces: Tensor) -> Fitting:
            return self.begin(base, pictures, objective)

        how = how_made(self.name, self.fit, objective)
        return TunedWork(booth, photos, begin, how, objective.prompt, self.at_once)

    def begin(self, base: Base, pictures: Pictures, objective: Objective) -> Fitting:
        """The fit of N people's words, (N, D)."""
        words = noun_embedding(base).repeat(len(pictures.latents), 1).requires_grad_()  # (N, D)
        run = fit(base, {"words": words}, lambda: said(base, words), pictures, objective, self.fit)

        def tensors() -> list[Mapping[str, Tensor]]:
            return [{WORD: word.detach().cpu().clone()} for word in run.averages["words"]]

        return Fitting(run, tensors)


@contextmanager
def said(base: Base, words: Tensor) -> Iterator[None]:
    """Inside, row i of N prompts (or of c * N, the N tiled) means person i's word (N, D) by the rare token."""
    rare = rare_token_id(base)

    def replace_word(_module: nn.Module, arguments: tuple[Any, ...], embedded: Tensor) -> Tensor:
        ids = arguments[0]  # (c * N, L)
        own = words.to(embedded).repeat(len(ids) // len(words), 1).unsqueeze(1)  # (c * N, 1, D)
        return torch.where((ids == rare).unsqueeze(-1), own, embedded)  # (c * N, L, D)

    handle = word_embeddings(base).register_forward_hook(replace_word)
    try:
        yield
    finally:
        handle.remove()
