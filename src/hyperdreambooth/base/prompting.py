"""SDXL's second text encoder, and how what it adds travels with the text states of every base."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer


@dataclass(frozen=True)
class SecondText:
    """The second text encoder of SDXL, frozen, with its tokenizer.

    empty_is_zero: whether the unconditional prompt "" is zeros, as SDXL was trained, and not what "" reads as.
    """

    text_encoder: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    empty_is_zero: bool = True


def pack(states: Tensor, pooled: Tensor) -> Tensor:
    """Text states (N, L, D) and a pooled embedding (N, P) as one tensor (N, L + ceil(P / D), D).

    The last rows hold the embedding and zeros. So whoever stacks, repeats or mixes text states need not know of SDXL.
    """
    width = states.shape[-1]
    rows = functional.pad(pooled, (0, -pooled.shape[-1] % width)).unflatten(-1, (-1, width))  # (N, ceil(P / D), D)
    return torch.cat([states, rows.to(states)], dim=1)


def unpack(packed: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The text states (N, L, D) and the pooled embedding (N, size) that `pack` made one."""
    rows = -(-size // packed.shape[-1])
    return packed[:, :-rows], packed[:, -rows:].flatten(1)[:, :size]


def time_ids(count: int, side: int, like: Tensor) -> Tensor:
    """SDXL's (count, 6) of size and crop: a square picture of `side` that was neither scaled nor cut."""
    return like.new_tensor([side, side, 0, 0, side, side]).expand(count, 6)
