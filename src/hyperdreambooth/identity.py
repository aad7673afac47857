"""One person's numbers, the space they live in, how they were made; and the file that holds them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperdreambooth.errors import BadFile, BadIdentityFile, NewerFormat, NotFinite, UserError, WrongBase, WrongSpace
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.lidb import LiDBSpace, LoRALayout, SpaceInfo, combine_lora

FORMAT = 4  # of files whose blocks come in two parts
# Of those without full-space factors, of those that have them beside LiDB numbers, and of those that have them alone.
_WITHOUT_LORA, _WITH_BOTH, _LORA_ALONE = 1, 2, 3
LICENCE = "likeness of one person: use it only as that person allows"

Dtype = Literal["fp16", "fp32", "int8"]
How = Mapping[str, str | int | float]

_FLOATS = {"fp16": torch.float16, "fp32": torch.float32}
_PARTS = ("lidb", "blocks", "up")  # the tensors of LiDB numbers, in the order of their sites
# Tensors beside those of int8.
_SCALES = {"lidb": "scales", "blocks": "block_scales", "up": "up_scales", "lora": "lora_scales"}
_GROUP = 64  # full-space factors that share a scale
_ZEROS = "lora_zeros"  # how many there are before those in the file
_SITES, _BLOCKS = "sites", "blocks"  # of a person whose LiDB numbers are left out
_MOST = 2**24  # numbers of a person that are zeros and not in the file, or 64 for each that is: more than anybody has
_MOST_AMOUNT = 1e30  # of a person in a mixture: far above, float32 ends
_METADATA_LIMIT = 1400  # bytes; keeps R = 4 in int8 on Stable Diffusion 1.5 within 120,000 bytes


@dataclass(frozen=True, eq=False)
class Identity:
    """One person in a LiDB space.

    Attributes:
        weights: packed LiDB numbers (S, R, a + b), float32; where the residual blocks' layers are fine-tuned too, those
            sites come last.
        space: the space that the numbers live in.
        base: fingerprint of the base model that they were fitted on.
        base_name: that base's name, for people.
        prompt: the prompt that they were fitted with, [V] for the person.
        rare_token: what stands for [V] in the base's vocabulary.
        class_noun: what the person is called beside it.
        how: how they were made: method, steps, seed and the like; short.
        lora: flat full-space LoRA factors (size,) after relaxation "lora", float32, or None.
        blocks: how many of the S sites are the residual blocks'.
    """

    weights: Tensor
    space: SpaceInfo
    base: str
    base_name: str = ""
    prompt: str = "a [V] face"
    rare_token: str = "sks"
    class_noun: str = "face"
    how: How = field(default_factory=dict)
    lora: Tensor | None = None
    blocks: int = 0

    @property
    def sites(self) -> int:
        """S, the adapted layers."""
        return len(self.weights)

    @property
    def ranks(self) -> int:
        """R, the LiDB ranks, prediction included."""
        return int(self.weights.shape[1])

    @property
    def numbers(self) -> int:
        """All numbers of the person that change anything, the full-space factors' too if there are any."""
        return sum(int(tensor.numel()) for tensor in self._parts().values()) + len(self._full()[0])

    def _parts(self) -> dict[str, Tensor]:
        """The numbers as a file holds them: of the 192-layer rule's sites, and of the blocks, each in its own ranks.

        Those that were fine-tuned in the blocks have one rank elsewhere, the prediction, and several there; or several
        in the last of them alone, the way up, which are then a part of their own. Beside full-space factors there are
        none where they change nothing, as without a prediction.
        """
        if self.lora is not None and not self.weights[..., self.space.a :].any():
            return {}
        if not self.blocks:
            return {"lidb": self.weights}
        a, rule = self.space.a, self.sites - self.blocks
        shallow = int(_used(self.weights[rule:], a).argmax())  # of the blocks: fewer ranks than those behind them
        first, between, last = self.weights.split([rule, shallow, self.blocks - shallow])
        if not shallow:
            return {"lidb": _trimmed(first, a), "blocks": _trimmed(last, a)}
        return {"lidb": _trimmed(first, a), "blocks": _trimmed(between, a, least=0), "up": _trimmed(last, a)}

    def _full(self) -> tuple[Tensor, int]:
        """The full-space factors as a file holds them, without the zeros before them, and how many these are."""
        if self.lora is None:
            return torch.empty(0), 0
        used = self.lora.flatten().nonzero()
        zeros = int(used[0]) if len(used) else 0
        return self.lora[zeros:], zeros

    def save(self, path: str | Path, dtype: Dtype = "fp16") -> int:
        """Write the identity file, atomically, and return its size in bytes.

        Args:
            path: the safetensors file.
            dtype: of the numbers: "fp16", "fp32", or "int8" with one fp16 scale per site, rank and half, and per 64
                full-space factors.

        Raises:
            NotFinite: a number, in that dtype.
            UserError: an unknown dtype, or a description too long for the file (see `check_description`).
            DiskFull: no room; whatever was at ``path`` is still there.
        """
        if dtype not in get_args(Dtype):
            raise UserError(f"got dtype {dtype!r}, expected one of {', '.join(get_args(Dtype))}")
        tensors = dict[str, Tensor]()
        for name, part in self._parts().items():
            tensors |= _quantise(part, self.space.a, name) if dtype == "int8" else {name: part.to(_FLOATS[dtype])}
        if self.lora is not None:
            full, _ = self._full()
            tensors |= _quantise_flat(full) if dtype == "int8" else {"lora": full.to(_FLOATS[dtype])}
        if (wrong := _not_finite(tensors)) is not None:
            raise NotFinite(
                f"cannot write {path}: the numbers of {wrong} are not all finite in {dtype}, expected finite ones: "
                "fit the person anew with fewer steps, or choose fp32"
            )
        save_tensors(path, tensors, self._metadata())
        return Path(path).stat().st_size

    @classmethod
    def open(
        cls, path: str | Path, *, space: LiDBSpace | None = None, base: str | None = None, base_name: str = ""
    ) -> "Identity":
        """Read an identity file; its numbers come back as float32 on the CPU.

        Args:
            path: the file.
            space: the space it must live in, or None to take any.
            base: the fingerprint of the base it must be made for, or None to take any.
            base_name: that base's name, for the message.

        Raises:
            BadIdentityFile: not a whole, sound identity file of ours. NewerFormat: of a later format version.
            WrongBase: made for another base. WrongSpace: lives in another space.
        """
        try:
            tensors, metadata = load_tensors(path)
        except BadFile as error:
            raise BadIdentityFile(str(error)) from error
        identity = _parse(path, tensors, metadata)
        if base is not None and identity.base != base:
            raise WrongBase.of(path, identity.base, identity.base_name, base, base_name)
        if space is not None:
            _check_space(path, identity.space, space)
            _check_sizes(path, identity, space)
        return identity

    def check_description(self) -> None:
        """Raise UserError if what the file says of the person beside the numbers is too long for it.

        The numbers do not matter: ask before the work, of an identity with `space.start()` in their place.
        """
        self._metadata()

    def _metadata(self) -> dict[str, str]:
        parts = self._parts()
        oldest = (
            _WITHOUT_LORA if self.lora is None else _WITH_BOTH if parts else _LORA_ALONE
        )  # that holds such a person
        metadata = {
            "hyperdreambooth": str(FORMAT if "up" in parts else oldest),
            "space": json.dumps(asdict(self.space), separators=(",", ":")),
            "ranks": str(self.ranks),
            "base": self.base,
            "base_name": self.base_name,
            "prompt": self.prompt,
            "rare_token": self.rare_token,
            "class_noun": self.class_noun,
            "how": json.dumps(dict(self.how), separators=(",", ":")),
            "library": _library_version(),
            "licence": LICENCE,
        }
        if self.lora is not None:
            metadata[_ZEROS] = str(self._full()[1])
            if not parts:
                metadata |= {_SITES: str(self.sites), _BLOCKS: str(self.blocks)}
        length = len(json.dumps(metadata).encode())
        if length > _METADATA_LIMIT:
            raise UserError(
                f"got {length} bytes of description, an identity file holds at most {_METADATA_LIMIT}: "
                "shorten the prompt or `how`"
            )
        return metadata


def combine(
    identities: Sequence[Identity], amounts: Sequence[float], space: LiDBSpace, ranks: int | None = None
) -> Identity:
    """The person whose dW is the sum of amounts[i] * dW_i: mixing with (1 - w, w), averaging with 1 / N each.

    LiDB ranks stack and are cut back to ``ranks`` (default: the most of any) by the SVD of the cores; full-space ranks
    stack and are cut back to the most of any. Everything but the numbers is taken from the first.

    Raises:
        WrongBase: the persons are of several bases. WrongSpace: they do not all live in ``space``. UserError: an amount
            that is not finite, or of 1e30 or more.
    """
    first = identities[0]
    if not all(abs(amount) < _MOST_AMOUNT for amount in amounts):
        told = ", ".join(f"{amount:g}" for amount in amounts)
        raise UserError(f"got amounts {told}, expected finite numbers below {_MOST_AMOUNT:g}")
    for other in identities:
        if other.base != first.base:
            raise WrongBase(
                f'got persons of bases "{first.base_name}" and "{other.base_name}": mix persons of one base'
            )
        _check_space("a person", other.space, space)
    own = space.of(*(one.weights for one in identities))
    relaxed = [
        (space.of(one.weights).fill_lora(one.lora, own), amount)
        for one, amount in zip(identities, amounts, strict=True)
        if one.lora is not None
    ]
    how: How = {"method": "combine", "amounts": " ".join(f"{amount:.4g}" for amount in amounts[:16])}
    return replace(
        first,
        weights=space.combine([own.fill(one.weights) for one in identities], amounts, ranks),
        space=own.info,
        lora=combine_lora(own.sites, *zip(*relaxed, strict=True)) if relaxed else None,
        blocks=own.blocks,
        how=how,
    )


def mix(first: Identity, second: Identity, weight: float, space: LiDBSpace) -> Identity:
    """A person on the way from ``first`` (weight 0) to ``second`` (weight 1), in dW."""
    return combine([first, second], [1.0 - weight, weight], space)


def average(identities: Sequence[Identity], space: LiDBSpace) -> Identity:
    """The person whose dW is nearest to the mean of the persons' dW."""
    return combine(identities, [1.0 / len(identities)] * len(identities), space)


def strength(identity: Identity, factor: float, space: LiDBSpace) -> Identity:
    """The same person with dW multiplied by ``factor``: 0 is the base model, 1 the person."""
    return combine([identity], [factor], space)


def _parse(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Identity:
    """The identity in a file's tensors and metadata, its format and its numbers checked."""
    _check_format(path, metadata)
    try:
        space, how = SpaceInfo(**json.loads(metadata["space"])), json.loads(metadata["how"])
        if not isinstance(how, dict) or not all(isinstance(size, int) and size > 0 for size in (space.a, space.b)):
            raise ValueError(f"a {space.a}, b {space.b}, how {how}")
        ranks, parts = int(metadata["ranks"]), _read_parts(tensors, metadata, space)
        blocks, width = sum(map(len, parts[1:])), space.a + space.b
        fit = all(len(part) and part.dim() == 3 and part.shape[1] <= ranks and part.shape[2] == width for part in parts)
        fewer = blocks or "lidb" not in tensors  # ranks in the file than the person's
        if not fit or (ranks < 1 if fewer else parts[0].shape[1] != ranks):
            raise ValueError(f"{ranks} ranks, numbers of shape {', '.join(str(tuple(part.shape)) for part in parts)}")
        zeros, most = int(metadata.get(_ZEROS, 0)), max(_MOST, 64 * sum(one.numel() for one in tensors.values()))
        if not 0 <= zeros <= most or sum(map(len, parts)) * ranks * width > most:
            raise ValueError(f"{ranks} ranks, {zeros} zeros")
        weights = torch.cat([F.pad(part, (0, 0, 0, ranks - part.shape[1])) for part in parts])
        lora = F.pad(_dequantise_flat(tensors), (zeros, 0)) if "lora" in tensors else None
        text = {key: metadata[key] for key in ("base", "base_name", "prompt", "rare_token", "class_noun")}
        identity = Identity(weights, space, how=how, lora=lora, blocks=blocks, **text)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise BadIdentityFile(
            f"{path} is damaged ({type(error).__name__}: {reason}), expected a sound identity file: make it anew"
        ) from error
    if (name := _not_finite({"lidb": weights} if lora is None else {"lidb": weights, "lora": lora})) is not None:
        raise BadIdentityFile(f"{path}: the numbers of {name} are not all finite, expected finite ones: make it anew")
    return identity


def _read_parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], space: SpaceInfo) -> list[Tensor]:
    """The packed numbers (S, R, a + b) of the rule's sites, and of the blocks' if there are any, as in `_parts`.

    Raises:
        LookupError, TypeError, ValueError, RuntimeError: the file is damaged.
    """
    if "lidb" in tensors or _SITES not in metadata:
        return [_dequantise(tensors, space.a, name) for name in _PARTS if name in tensors or name == "lidb"]
    sites, blocks = int(metadata[_SITES]), int(metadata[_BLOCKS])
    if "lora" not in tensors or not 0 <= blocks < sites:
        raise ValueError(f"{sites} sites, {blocks} of blocks, without numbers")
    nothing = torch.zeros(1).expand(sites, 1, space.a + space.b)
    return list(nothing.split([sites - blocks, blocks])) if blocks else [nothing]


def _check_format(path: str | Path, metadata: Mapping[str, str]) -> None:
    stated = metadata.get("hyperdreambooth", "")
    if not stated.isdecimal() or len(stated) > 9:
        raise BadIdentityFile(
            f"{path} is a safetensors file of something else, expected an identity: give the right file"
        )
    if int(stated) > FORMAT:
        raise NewerFormat(
            f"{path} has identity format {stated}, this library reads up to {FORMAT}: install a newer hyperdreambooth"
        )


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a number that is not finite."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def _check_space(what: str | Path, got: SpaceInfo, space: LiDBSpace) -> None:
    remedy = "use the base and settings it was made with"
    if got != space.rule.info:
        WrongSpace.check(f"{what} lives in", asdict(got), asdict(space.info), remedy)


def _check_sizes(path: str | Path, identity: Identity, space: LiDBSpace) -> None:
    """Raise BadIdentityFile unless there are numbers for every site of the space, and whole ranks of full factors."""
    own = space if identity.space == space.info else space.rule
    if identity.sites != len(own.sites) or identity.blocks not in (0, own.blocks) or not identity.ranks:
        raise BadIdentityFile(
            f"{path} is damaged (numbers of {identity.sites} sites and {identity.ranks} ranks), expected "
            f"{len(own.sites)} sites and 1 rank or more: make it anew"
        )
    lora, width = identity.lora, LoRALayout(own.sites, rank=1).size
    if lora is not None and (lora.dim() != 1 or not lora.numel() or lora.numel() % width):
        raise BadIdentityFile(
            f"{path} is damaged (LoRA factors of shape {tuple(lora.shape)}), expected r * {width} numbers: make it anew"
        )


def _used(weights: Tensor, a: int) -> Tensor:
    """(S,): the ranks of each site (S, R, a + b) up to the last that changes something."""
    changes = weights[..., a:].ne(0).any(dim=-1)  # (S, R)
    return (changes * torch.arange(1, weights.shape[1] + 1)).amax(dim=1)


def _trimmed(weights: Tensor, a: int, least: int = 1) -> Tensor:
    """(S, R, a + b) without the last ranks that change nothing anywhere; so many stay."""
    return weights[:, : max(int(_used(weights, a).max()), least)]


def _quantise(weights: Tensor, a: int, name: str) -> dict[str, Tensor]:
    """(S, R, a + b) -> `name` int8 and scales (S, R, 2) fp16, for each column of A_train and each row of B_train."""
    halves = weights.split([a, weights.shape[-1] - a], dim=-1)
    codes, scales = zip(*map(_coded, halves), strict=True)
    return {name: torch.cat(codes, dim=-1), _SCALES[name]: torch.cat(scales, dim=-1)}


def _coded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (..., n) -> int8 (..., n) and the fp16 scale of each, (..., 1)."""
    scales = (rows.abs().amax(dim=-1, keepdim=True) / 127).half()
    return (rows / scales.float().clamp(min=1e-12)).round().clamp(-127, 127).to(torch.int8), scales


def _dequantise(tensors: Mapping[str, Tensor], a: int, name: str) -> Tensor:
    """The packed numbers (S, R, a + b) in float32 of a file's tensors, whatever they were saved as."""
    numbers = tensors[name]
    if numbers.dtype != torch.int8:
        return numbers.float()
    scales = tensors[_SCALES[name]].float()  # (S, R, 2)
    widths = torch.tensor([a, numbers.shape[-1] - a])
    return numbers.float() * scales.repeat_interleave(widths, dim=-1)


def _quantise_flat(lora: Tensor) -> dict[str, Tensor]:
    """(size,) -> "lora" int8 and scales (size / 64,) fp16, rounded up."""
    groups = F.pad(lora, (0, -len(lora) % _GROUP)).unflatten(0, (-1, _GROUP))
    codes, scales = _coded(groups)
    return {"lora": codes.flatten()[: len(lora)], _SCALES["lora"]: scales.flatten()}


def _dequantise_flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """The full-space factors (size,) in float32 of a file's tensors, whatever they were saved as."""
    lora = tensors["lora"]
    if lora.dim() != 1:
        raise ValueError(f"LoRA factors of shape {tuple(lora.shape)}")
    if lora.dtype != torch.int8:
        return lora.float()
    return lora.float() * tensors[_SCALES["lora"]].float().repeat_interleave(_GROUP)[: len(lora)]


def _library_version() -> str:
    try:
        return version("hyperdreambooth")
    except PackageNotFoundError:  # run from a checkout
        return "0"
