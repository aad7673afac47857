"""Two more judges of the embedded base's pictures, in the place of the paper's DINO and CLIP on real photographs.

Like the others (`judges.py`) they are trained on true pictures (`recipes/features.py`), and nothing that they judge
learns from them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperdreambooth.evaluation.judges import Judge, JudgeConfig
from hyperdreambooth.portraits.captions import RARE_TOKEN, vocabulary

_LONGEST = 40  # words of a text that are read
_WIDTH, _HEADS, _LAYERS = 96, 4, 2  # of the network that reads texts
_HOTTEST = 100.0  # largest factor of likenesses in training, as in CLIP


class SelfSupervised(Judge):
    """Do two pictures look alike, as a network sees them that was told nothing of people, styles or words?

    It learnt to find a picture again that was cut, shifted and coloured otherwise: DINO's place in the paper's tables.
    """

    kind = "self-supervised encoder"

    @property
    def outputs(self) -> int:
        """Numbers of an embedding."""
        return self.config.embedding

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> unit embeddings (N, E) on the CPU; their products are likenesses."""
        return F.normalize(self.look(pictures), dim=1)


class ImageText(Judge):
    """Does a picture show what a text says? CLIP's place: pictures and captions in one space (arXiv 2103.00020)."""

    kind = "image-text model"

    def __init__(self, config: JudgeConfig | None = None) -> None:
        super().__init__(config)
        self.words = {word: number for number, word in enumerate(vocabulary(), start=1)}  # 0 is no word
        self.word_embedding = nn.Embedding(len(self.words) + 1, _WIDTH, padding_idx=0)
        self.position = nn.Parameter(0.02 * torch.randn(_LONGEST, _WIDTH))
        layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, 2 * _WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.reader = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.project = nn.Linear(_WIDTH, self.outputs)
        self.log_scale = nn.Parameter(torch.tensor(2.3))  # of likenesses in training: a temperature of 0.1 at first

    @property
    def outputs(self) -> int:
        """Numbers of an embedding."""
        return self.config.embedding

    @property
    def scale(self) -> Tensor:
        """The factor of likenesses in training, 1 / temperature."""
        return self.log_scale.exp().clamp(max=_HOTTEST)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Texts as numbers of their words, (N, L) int64, 0 after their end; "[V]" is the rare token.

        Words that no caption holds are left out, as are those after the first 40.
        """
        rows = [
            [number for word in _words(text) if (number := self.words.get(word))][:_LONGEST] or [0] for text in texts
        ]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    def read_text(self, tokens: Tensor) -> Tensor:
        """Numbers of words (N, L) -> raw numbers (N, E): the mean over the words, read in their order."""
        known = (tokens > 0).unsqueeze(-1)  # (N, L, 1)
        nothing = ~known.any(dim=1)  # (N, 1): a text without any known word is read as it stands
        x = self.word_embedding(tokens) + self.position[: tokens.shape[1]]  # (N, L, D)
        x = self.reader(x, src_key_padding_mask=~known.squeeze(-1) & ~nothing)
        count = known.sum(dim=1).clamp(min=1)  # (N, 1)
        read: Tensor = self.project((x * known).sum(dim=1) / count)
        return read

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> unit embeddings (N, E) on the CPU."""
        return F.normalize(self.look(pictures), dim=1)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit embeddings (N, E) on the CPU: their products with those of pictures say how well they fit."""
        return F.normalize(self.read_text(self.tokens(texts).to(self.log_scale.device)).float().cpu(), dim=1)


def _words(text: str) -> list[str]:
    """The words and signs of a text, as `vocabulary` spells them."""
    return re.findall(r"\w+|[^\w\s]", text.lower().replace("[v]", RARE_TOKEN))
