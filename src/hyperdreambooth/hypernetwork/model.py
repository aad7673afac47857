"""The hypernetwork: one picture of a face to the LiDB numbers of its person (section 4.2 of the paper, eq. 3).

    theta_k = theta_{k-1} + T(f, theta_{k-1})     theta_0 = 0, k = 1..s     f: the face's features, computed once

theta is the offset of a person's numbers from the common start, in units of its spread over the people that were
pre-optimised: theta = 0 is the mean person.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperdreambooth.errors import BadFile, WrongBase, WrongSpace
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.hypernetwork.encoder import (
    EncoderConfig,
    FaceEncoder,
    PretrainedEncoder,
    blocks,
    build_encoder,
    load_parameters,
    random_encoder,
)
from hyperdreambooth.lidb import LiDBSpace

FORMAT = "hyperdreambooth-hypernetwork-3"


@dataclass(frozen=True)
class HyperNetworkConfig:
    """Sizes of a hypernetwork; those of its output are its space's."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    hidden: int = 192  # width of the decoder
    layers: int = 2
    heads: int = 6
    rounds: int = 3  # s
    blocks: bool = True  # whether it speaks of the residual blocks' layers too, behind those of the 192-layer rule
    independent: bool = False  # whether no layer knows of another (an ablation, after HyperStyle): see `HyperNetwork`

    @property
    def values(self) -> dict[str, object]:
        """As a file or a plan keeps them: what earlier ones do not know is there only where it is another."""
        values = asdict(self)
        if not self.independent:
            del values["independent"]
        if not self.encoder.trained:
            del values["encoder"]["trained"]
        return values


PRESETS = {
    # For tests: a forward pass takes milliseconds.
    "tiny": HyperNetworkConfig(EncoderConfig(picture_size=16, patch=4, width=32, depth=1, heads=2), 32, heads=2),
    # 64 x 64 pictures, two CPU cores.
    "embedded": HyperNetworkConfig(),
    # Stable Diffusion 1.5: the paper's ViT-H, in its openly licensed CLIP training.
    "vit-h": HyperNetworkConfig(
        EncoderConfig(
            picture_size=224,
            patch=14,
            width=1280,
            depth=32,
            heads=16,
            pretrained="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            pixel_mean=(0.48145466, 0.4578275, 0.40821073),
            pixel_std=(0.26862954, 0.26130258, 0.27577711),
        ),
        hidden=1024,
        heads=16,
    ),
}


class SiteLinear(nn.Module):
    """A linear layer of its own for each site: the bases of two sites have nothing in common, nor do their numbers."""

    def __init__(self, sites: int, n_in: int, n_out: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(sites, n_in, n_out) * std)
        self.bias = nn.Parameter(torch.zeros(sites, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, n_in) -> (N, S, n_out)."""
        return torch.einsum("nsi,sio->nso", x, self.weight) + self.bias


class HyperNetwork(nn.Module):
    """Encoder and iterative decoder, with the space and the base that the numbers are for.

    With independent layers there is no position, and a site's token attends to the face and to itself alone, the face
    to itself: as in HyperStyle (arXiv 2111.15666), where each layer's refinement block reads the features of the face
    and nothing of other layers. All else is the same, the parameters too but for the positions; a site is told from
    another by its own part of the head.

    Args:
        config: the sizes.
        space: the weight space of the numbers; S sites of a + b numbers.
        base: fingerprint of the base model.
        base_name: that base's name, for people.
        encoder: in the place of the one that the config names; None builds that.

    Attributes:
        offset_mean, offset_std: (S, a + b) statistics of people's offsets from the start, 0 and 1 until
            `set_statistics`.
    """

    start: Tensor
    offset_mean: Tensor
    offset_std: Tensor

    def __init__(
        self,
        config: HyperNetworkConfig,
        space: LiDBSpace,
        base: str,
        base_name: str = "",
        encoder: FaceEncoder | PretrainedEncoder | None = None,
    ) -> None:
        super().__init__()
        self.config, self.space, self.base, self.base_name = config, space, base, base_name
        sites = len(space.sites)
        self.encoder = build_encoder(config.encoder) if encoder is None else encoder
        self.project = nn.Linear(self.encoder.width, config.hidden)
        position = torch.randn(sites, config.hidden) * 0.02  # which site, in order of execution
        self.position = None if config.independent else nn.Parameter(position)
        self.decoder = blocks(config.hidden, config.heads, config.layers)
        self.norm = nn.LayerNorm(config.hidden)
        self.head = SiteLinear(sites, config.hidden, space.width, std=1e-3)  # small: training begins at the mean person
        self.gain = nn.Parameter(torch.full((sites, 1), 8.0))  # of theta in the next round, read through the same head
        self.register_buffer("start", space.start(), persistent=False)  # (S, 1, a + b), drawn anew from the seed
        self.register_buffer("offset_mean", torch.zeros(sites, space.width))
        self.register_buffer("offset_std", torch.ones(sites, space.width))

    def forward(self, pictures: Tensor, rounds: int | None = None) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> theta_s, (N, S, 1, a + b), after `rounds` rounds, by default the config's.

        Gradients flow through all rounds.
        """
        return self.decode(self.encoder(pictures), rounds)

    def decode(self, features: Tensor, rounds: int | None = None) -> Tensor:
        """Features (N, F, D) of the encoder -> theta_s, (N, S, 1, a + b)."""
        face = self.project(features)  # (N, F, hidden)
        theta = face.new_zeros(len(face), *self.offset_mean.shape)  # (N, S, a + b)
        for _ in range(self.config.rounds if rounds is None else rounds):
            theta = theta + self._delta(face, theta)
        return theta.unsqueeze(2)

    def _delta(self, face: Tensor, theta: Tensor) -> Tensor:
        """One round of eq. 3: the face (N, F, hidden) and the last theta (N, S, a + b) -> its change.

        Each site's token holds the whole face from the start: what attention had to bring there first, among all that
        is the same for everybody, was learnt late.
        """
        read = self.gain * torch.einsum("nso,sio->nsi", theta, self.head.weight)  # (N, S, hidden)
        tokens = read + face[:, :1]  # (N, S, hidden)
        mask = None
        if self.position is None:
            mask = _apart(face.shape[1], tokens.shape[1], face.device)
        else:
            tokens = self.position + tokens
        sequence = torch.cat([face, tokens], dim=1)  # (N, F + S, hidden)
        for block in self.decoder:
            sequence = block(sequence, src_mask=mask)
        delta: Tensor = self.head(self.norm(sequence[:, face.shape[1] :]))  # (N, S, a + b)
        return delta

    def numbers(self, theta: Tensor) -> Tensor:
        """theta (N, S, 1, a + b) -> packed LiDB numbers of the same shape, as `Adapters.use` takes them."""
        return self.start + self.offset_mean.unsqueeze(1) + self.offset_std.unsqueeze(1) * theta

    def theta(self, numbers: Tensor) -> Tensor:
        """Packed LiDB numbers (N, S, 1, a + b) -> theta; the inverse of `numbers`."""
        return (numbers - self.start - self.offset_mean.unsqueeze(1)) / self.offset_std.unsqueeze(1)

    def set_statistics(self, numbers: Tensor) -> None:
        """Measure theta's zero and unit on pre-optimised people (N, S, 1, a + b), N >= 2.

        The mean is each number's own. The unit is one per site and half (A_train, B_train), so that a number that
        hardly differs between people, which is mostly noise, counts little in the weight loss.
        """
        offsets = (numbers - self.start)[:, :, 0]  # (N, S, a + b)
        self.offset_mean.copy_(offsets.mean(dim=0))
        halves = self.space.split(offsets.var(dim=0))  # (S, a), (S, b)
        spreads = [half.mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-8).expand_as(half) for half in halves]
        self.offset_std.copy_(torch.cat(spreads, dim=-1))

    @property
    def has_statistics(self) -> bool:
        """Whether theta's zero and unit were measured."""
        return bool(self.offset_mean.any())

    @torch.no_grad()
    def predict(self, pictures: Tensor, rounds: int | None = None) -> Tensor:
        """The persons in pictures (N, 3, H, W) in [0, 1] of any size: packed LiDB numbers (N, S, 1, a + b), float32."""
        return self.numbers(self(pictures.to(self.start.device), rounds)).float()

    def save(
        self, path: str | Path, dtype: torch.dtype = torch.float16, about: Mapping[str, str] | None = None
    ) -> None:
        """Write one safetensors file: the parameters (a frozen pretrained encoder's excepted), and what they are for.

        Args:
            path: the file.
            dtype: of the parameters; the statistics stay float32.
            about: more lines of metadata, such as a model card's.
        """
        tensors = {
            name: tensor if name.startswith("offset_") else tensor.to(dtype) for name, tensor in self._own().items()
        }
        metadata = {
            "format": FORMAT,
            "config": json.dumps(self.config.values),
            "space": json.dumps(asdict(self.space.info)),
            "base": self.base,
            "base_name": self.base_name,
        }
        save_tensors(path, tensors, {**(about or {}), **metadata})

    @classmethod
    def load(cls, path: str | Path, space: LiDBSpace, base: str, base_name: str = "") -> HyperNetwork:
        """Read a hypernetwork for this space and base (its fingerprint); float32, on the CPU, frozen, for evaluation.

        Raises:
            BadFile: not a whole, sound hypernetwork file. WrongBase, WrongSpace: made for another base or space.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != FORMAT:
            got = metadata.get("format", "no format")
            if got.startswith(FORMAT.rstrip("0123456789")):
                raise BadFile(f"{path} holds {got} of another version, expected {FORMAT}: train it anew")
            raise BadFile(f"{path} holds {got}, expected {FORMAT}: give the file of a hypernetwork")
        try:
            config = _config(json.loads(metadata["config"]))
            made_for, made_in, made_name = metadata["base"], json.loads(metadata["space"]), metadata["base_name"]
        except (KeyError, TypeError, ValueError) as error:
            raise BadFile(f"{path} is damaged ({error!r}), expected a sound hypernetwork: make it anew") from error
        if made_for != base:
            raise WrongBase.of(path, made_for, made_name, base, base_name)
        info = asdict(_space_of(config, space).info)
        WrongSpace.check(f"{path} predicts in", made_in, info, "use the base it was made for")
        network = build_hypernetwork(config, space, base, base_name)
        load_parameters(network, network._with_pretrained(tensors), path)
        network.eval().requires_grad_(False)
        return network

    def _own(self) -> dict[str, Tensor]:
        """What is learnt here, by name: everything but a frozen pretrained encoder."""
        frozen = self.config.encoder.frozen
        return {name: t for name, t in self.state_dict().items() if not (frozen and name.startswith("encoder."))}

    def _with_pretrained(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors, and beside them those of this network that no file holds."""
        own = self._own()
        return {**tensors, **{name: t for name, t in self.state_dict().items() if name not in own}}


def build_hypernetwork(
    config: HyperNetworkConfig, space: LiDBSpace, base: str, base_name: str = "", seed: int = 0
) -> HyperNetwork:
    """A hypernetwork with random weights that depend on `seed` alone, for those sites that the config names."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return HyperNetwork(config, _space_of(config, space), base, base_name)


def random_hypernetwork(config: HyperNetworkConfig, space: LiDBSpace, base: str, base_name: str = "") -> HyperNetwork:
    """A hypernetwork of those sizes of which nothing is fetched, to be counted or timed: see `random_encoder`."""
    return HyperNetwork(config, _space_of(config, space), base, base_name, random_encoder(config.encoder))


def _apart(faces: int, sites: int, device: torch.device) -> Tensor:
    """(F + S, F + S), True where one token may not see another: all see the face, and a site itself beside it."""
    hidden = ~torch.eye(faces + sites, dtype=torch.bool, device=device)
    hidden[:, :faces] = False
    return hidden


def _space_of(config: HyperNetworkConfig, space: LiDBSpace) -> LiDBSpace:
    """The space in which a hypernetwork of this config speaks, of a base's whole space."""
    return space if config.blocks else space.rule


def _config(values: dict[str, object]) -> HyperNetworkConfig:
    """The config that `asdict` and JSON made these values of."""
    encoder = values.pop("encoder")
    if not isinstance(encoder, dict):
        raise TypeError(f"encoder is {encoder!r}")
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in encoder.items()}
    return HyperNetworkConfig(EncoderConfig(**tuples), **values)  # type: ignore[arg-type]  # wrong ones are refused
