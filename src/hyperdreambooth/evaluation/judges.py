"""The judges: three small convolutional networks that say who is in a picture, what scene it is, and what they see.

They are trained on true pictures (`recipes/judges.py`) and by nobody else: nothing that they judge ever learns from
them. Each is a few milliseconds a picture on one core.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperdreambooth.errors import BadFile
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.portraits.captions import CONTEXTS, DOMAINS, EDITS, STYLES, Scene
from hyperdreambooth.portraits.person import ATTRIBUTES

FORMAT = "hyperdreambooth-judge-1"
# What a scene classifier chooses between, by field of `Scene`.
SCENE_OPTIONS: Mapping[str, tuple[str | None, ...]] = {
    "style": STYLES,
    "domain": (None, *DOMAINS),
    "context": (None, *CONTEXTS),
    "edit": (None, *EDITS),
}
_BATCH = 256  # pictures looked at together


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes of a judge. Each of `channels` stands for a halving of the picture and a residual block."""

    picture_size: int = 64
    channels: tuple[int, ...] = (32, 64, 96, 160)
    embedding: int = 128  # numbers of a face's embedding


class Judge(nn.Module, ABC):
    """A convolutional network from pictures (N, 3, H, W) in [0, 1] to raw numbers (N, outputs).

    Group normalisation looks at one picture at a time: a verdict does not depend on what else is in the batch. The
    last layer sees where things are: faces are aligned.
    """

    kind: ClassVar[str]

    def __init__(self, config: JudgeConfig | None = None) -> None:
        super().__init__()
        self.config = config or JudgeConfig()
        channels = self.config.channels
        side = self.config.picture_size >> len(channels)
        self.trunk = nn.Sequential(
            *(_Level(n, m) for n, m in zip((3, *channels), channels, strict=False)),
            nn.Flatten(),
            nn.Linear(channels[-1] * side * side, self.outputs),
        )

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Raw numbers per picture."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] of any size -> raw numbers (N, outputs)."""
        size = (self.config.picture_size, self.config.picture_size)
        if tuple(pictures.shape[-2:]) != size:
            pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        raw: Tensor = self.trunk(pictures * 2 - 1)
        return raw

    @torch.no_grad()
    def look(self, pictures: Tensor) -> Tensor:
        """`forward`, a few at a time, without gradients: raw numbers (N, outputs) float32 on the CPU."""
        device = next(self.parameters()).device
        return torch.cat([self(some.to(device)).float().cpu() for some in pictures.split(_BATCH)])

    def save(
        self, path: str | Path, dtype: torch.dtype = torch.float16, about: Mapping[str, str] | None = None
    ) -> None:
        """Write one safetensors file; `about` is more metadata, such as a model card's lines."""
        tensors = {name: tensor.to(dtype) for name, tensor in self.state_dict().items()}
        metadata = {"format": FORMAT, "kind": self.kind, "config": json.dumps(asdict(self.config))}
        save_tensors(path, tensors, {**(about or {}), **metadata})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a judge of this kind: float32, on the CPU, in evaluation mode.

        Raises:
            BadFile: not a whole, sound file of a judge of this kind.
        """
        tensors, metadata = load_tensors(path)
        if (metadata.get("format"), metadata.get("kind")) != (FORMAT, cls.kind):
            got = f"{metadata.get('format', 'no format')} {metadata.get('kind', '')}".strip()
            raise BadFile(f"{path} holds {got}, expected {FORMAT} {cls.kind}: give the file of a {cls.kind}")
        try:
            values = json.loads(metadata["config"])
            judge = cls(JudgeConfig(**{**values, "channels": tuple(values["channels"])}))
            judge.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:80]
            raise BadFile(f"{path} is damaged ({reason}), expected a sound {cls.kind}: make it anew") from error
        judge.eval()
        return judge


class Recogniser(Judge):
    """Who is it? Pictures of one person lie close together, whatever the view and the style."""

    kind = "recogniser"

    @property
    def outputs(self) -> int:
        """Numbers of an embedding."""
        return self.config.embedding

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> unit embeddings (N, E) on the CPU; their products are likenesses."""
        return F.normalize(self.look(pictures), dim=1)


class SceneClassifier(Judge):
    """Which style, far domain, context and edit? Of photographs, only the style is meant."""

    kind = "scene classifier"

    @property
    def outputs(self) -> int:
        """All options of all fields."""
        return sum(len(options) for options in SCENE_OPTIONS.values())

    @staticmethod
    def by_field(raw: Tensor) -> dict[str, Tensor]:
        """Raw numbers (N, outputs) -> logits (N, options) of each field of a scene."""
        widths = [len(options) for options in SCENE_OPTIONS.values()]
        return dict(zip(SCENE_OPTIONS, raw.split(widths, dim=1), strict=True))

    def read(self, pictures: Tensor) -> list[Scene]:
        """The likeliest scene of each picture (N, 3, H, W) in [0, 1]; its world is not said."""
        chosen = {field: logits.argmax(dim=1).tolist() for field, logits in self.by_field(self.look(pictures)).items()}
        return [
            Scene(**{field: SCENE_OPTIONS[field][rows[row]] for field, rows in chosen.items()})
            for row in range(len(pictures))
        ]


class AttributeReader(Judge):
    """What does the person look like? The attributes of `portraits.person`, read back from a portrait."""

    kind = "attribute reader"

    @property
    def outputs(self) -> int:
        """Columns of `truth_matrix`."""
        return sum(attribute.width for attribute in ATTRIBUTES)

    def read(self, pictures: Tensor) -> Tensor:
        """Portraits (N, 3, H, W) in [0, 1] -> (N, T) in [0, 1], as `truth_matrix`; choices as probabilities."""
        raw = self.look(pictures).split([attribute.width for attribute in ATTRIBUTES], dim=1)
        read = [
            part.softmax(dim=1) if attribute.choices else part.sigmoid()
            for part, attribute in zip(raw, ATTRIBUTES, strict=True)
        ]
        return torch.cat(read, dim=1)


class _Level(nn.Module):
    """Half the size, then a residual block: (N, n, H, W) -> (N, m, H / 2, W / 2)."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.halve = nn.Sequential(nn.Conv2d(n, m, 3, stride=2, padding=1, bias=False), nn.GroupNorm(8, m), nn.ReLU())
        self.refine = nn.Sequential(nn.Conv2d(m, m, 3, padding=1, bias=False), nn.GroupNorm(8, m))

    def forward(self, x: Tensor) -> Tensor:
        x = self.halve(x)
        return F.relu(x + self.refine(x))
