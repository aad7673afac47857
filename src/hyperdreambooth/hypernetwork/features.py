"""What a frozen encoder sees in everybody's pictures: made once, kept in a folder, and read a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperdreambooth.fitting.plan import digest
from hyperdreambooth.hypernetwork.encoder import FaceEncoder, PretrainedEncoder
from hyperdreambooth.hypernetwork.jitter import Jitter
from hyperdreambooth.kept import Kept, Made, key_of
from hyperdreambooth.progress import Progress

LOOK = "look at pictures"
_AT_ONCE = 32  # pictures through the encoder


@dataclass(frozen=True)
class Features:
    """Features (F, D) in half precision of P pictures of each of N people, in J versions of each.

    Attributes:
        kept: where they are.
        keys: N, by which people are found there.
        versions: J.
    """

    kept: Kept
    keys: tuple[str, ...]
    versions: int

    def __call__(self, rows: Tensor, views: Tensor, versions: Tensor) -> Tensor:
        """Those of n people in one version of one picture each, (n, F, D) float32: nothing else is read."""
        places = zip(rows.tolist(), views.tolist(), versions.tolist(), strict=True)
        parts = [self.kept.row(self.keys[row], view * self.versions + version) for row, view, version in places]
        return torch.stack(parts).float()


def look(
    encoder: FaceEncoder | PretrainedEncoder,
    pictures: Tensor,
    kept: Kept,
    jitter: Jitter,
    versions: int,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Features:
    """Have everybody's features there; who is there already, of the same pictures and encoder, is not looked at again.

    Args:
        encoder: on its device, and never trained after this.
        pictures: (N, P, 3, H, W) uint8.
        kept: where they go: F D 2 bytes for each version of a picture, 0.66 MB of ViT-H's.
        jitter: how versions differ; they depend on the picture alone, not on who else is looked at.
        versions: J, of each picture.
        progress: hears of the people.

    Raises:
        UserError: another process is at it. DiskFull, WorkError: what is written stays.
    """
    what = digest(*encoder.state_dict().values()), jitter, versions
    keys = tuple(key_of(*what, digest(own)) for own in pictures)
    place = {key: row for row, key in enumerate(keys)}

    def make(missing: Collection[str]) -> Iterator[Made]:
        for done, key in enumerate(missing, start=1):
            own = pictures[place[key]]
            yield Made(key, _seen(encoder, own, jitter, versions, int(key[:15], 16)), len(own))
            progress(Progress(LOOK, done, len(missing)))

    kept.ensure(keys, make)
    return Features(kept, keys, versions)


@torch.no_grad()
def _seen(
    encoder: FaceEncoder | PretrainedEncoder, pictures: Tensor, jitter: Jitter, versions: int, seed: int
) -> Tensor:
    """P pictures (P, 3, H, W) uint8 of one person -> (P * J, F, D) float16, the versions of a picture together."""
    device = next(encoder.parameters()).device
    several = (pictures.to(device).float() / 255).repeat_interleave(versions, dim=0)
    changed = jitter(several, torch.Generator().manual_seed(seed))
    return torch.cat([encoder(some).half().cpu() for some in changed.split(_AT_ONCE)])
