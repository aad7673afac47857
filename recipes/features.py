"""Stage: two more judges, in the place of the paper's DINO and CLIP; trained as those of `recipes/judges.py` are."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hyperdreambooth.evaluation.features import ImageText, SelfSupervised
from hyperdreambooth.evaluation.identification import Rate, identification_rate
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run
from hyperdreambooth.hypernetwork.jitter import Jitter
from hyperdreambooth.portraits.captions import EDIT_SCENES, STYLE_SCENES, Scene, caption, training_caption
from hyperdreambooth.portraits.person import Person
from recipes.judges import MILD, as_shown, contrastive_loss, train_judge
from recipes.pictures import Pictures

# What a picture may lose and still be found again. Colours are changed more than faces are moved: they are aligned.
HARD = Jitter(zoom=0.25, shift=0.1, colour=0.3, blur=1.0)
PROMPTS = tuple(caption(scene) for scene in (*STYLE_SCENES, *EDIT_SCENES))


def train_self_supervised(
    encoder: SelfSupervised,
    pictures: Pictures,
    batch: int,
    config: FitConfig,
    generator: torch.Generator,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Find each picture of a batch again in another version of it, by the contrastive loss (arXiv 2002.05709).

    Nothing is said of whose picture it is or what it shows. The metric `nearest` is how often it is found.
    """
    device = next(encoder.parameters()).device

    def loss(_step: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(pictures), (batch,), generator=generator)
        versions = as_shown(pictures.pictures[rows.repeat(2)], HARD, generator, device)  # (2 * batch, 3, S, S)
        embedded = F.normalize(encoder(versions), dim=1)
        itself = torch.arange(batch, device=device).repeat(2)
        first, second = embedded.detach().chunk(2)
        found = (first @ second.T).argmax(dim=1) == itself[:batch]
        return contrastive_loss(embedded, itself), {"nearest": float(found.float().mean())}

    return train_judge(encoder, loss, config, generator, checkpoint)


def train_image_text(
    model: ImageText,
    pictures: Pictures,
    batch: int,
    config: FitConfig,
    generator: torch.Generator,
    checkpoint: Checkpoint | None = None,
) -> Run:
    """Tell the captions of a batch apart by its pictures and the other way round, by CLIP's loss.

    Captions are those that the base learns from, drawn anew each time. Pictures of one batch with the same caption
    share it. The metric `matched` is the share of pictures whose likeliest caption is their own.
    """
    device = next(model.parameters()).device

    def loss(_step: int) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(pictures), (batch,), generator=generator)
        random = np.random.RandomState(int(torch.randint(2**31, (), generator=generator)))
        texts = [_caption(pictures, row, random) for row in rows.tolist()]
        seen = F.normalize(model(as_shown(pictures.pictures[rows], MILD, generator, device)), dim=1)  # (batch, E)
        read = F.normalize(model.read_text(model.tokens(texts).to(device)), dim=1)  # (batch, E)
        likeness = model.scale * seen @ read.T  # (batch, batch)
        same = torch.tensor([[mine == other for other in texts] for mine in texts], device=device).float()
        target = same / same.sum(dim=1, keepdim=True)
        total = (F.cross_entropy(likeness, target) + F.cross_entropy(likeness.T, target)) / 2
        matched = same.gather(1, likeness.argmax(dim=1, keepdim=True)).mean()
        return total, {"matched": float(matched)}

    return train_judge(model, loss, config, generator, checkpoint)


def _caption(pictures: Pictures, row: int, random: np.random.RandomState) -> str:
    person = pictures.people[row]
    return training_caption(pictures.scenes[row], Person(person) if person >= 0 else None, random)


def found_again(encoder: SelfSupervised, pictures: Tensor, generator: torch.Generator) -> Rate:
    """How often a picture (N, 3, S, S) is found among all by another version of itself."""
    gallery, probes = encoder.embed(pictures), encoder.embed(HARD(pictures, generator))
    return identification_rate(gallery, probes, torch.arange(len(pictures)))


def prompt_matched(model: ImageText, pictures: Tensor, scenes: list[Scene]) -> Rate:
    """How often a picture's likeliest of all prompts (styles, domains, contexts, edits) is its own."""
    own = torch.tensor([PROMPTS.index(caption(scene)) for scene in scenes])
    return identification_rate(model.embed_text(PROMPTS), model.embed(pictures), own)
