"""LoRA files of other programs to factors on our sites: kohya, diffusers or PEFT, of any rank, on any of the layers."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperdreambooth.errors import BadFile, UserError, WrongBase
from hyperdreambooth.files import load_tensors
from hyperdreambooth.lidb.lora import Factors, squared_norm
from hyperdreambooth.lidb.names import (
    PEFT_PREFIX,
    TEXT_MODEL,
    architecture_of,
    flatten,
    has_two_encoders,
    kohya_name,
    model_of,
    parse,
)
from hyperdreambooth.lidb.sites import MODELS, Site

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_DIFFUSERS_CONFIG = "lora_adapter_metadata"  # a JSON of PEFT's settings in the file's metadata, "unet.r" and so on


@dataclass(frozen=True)
class ReadLoRA:
    """A LoRA as factors on the sites.

    Attributes:
        factors: of each site, down (r, n) and up (m, r) in float32, alpha and ranks multiplied in: dW = up @ down. Zero
            where the file has nothing.
        rank: r, the greatest rank of any layer; smaller ones are filled with zeros.
        sites: how many of the sites the file changes.
        left_out: the layers that are no sites, by the file's own name, with their share of ||dW||^2 of the whole file.
        metadata: the file's text.
    """

    factors: list[Factors]
    rank: int
    sites: int
    left_out: Mapping[str, float]
    metadata: Mapping[str, str]


@dataclass
class _Source:
    """One file's tensors, the model they are of where it holds one alone, and PEFT's settings by model."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    model: str = ""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_lora(path: str | Path, sites: tuple[Site, ...], partial: bool = False) -> ReadLoRA:
    """Read a LoRA: a file in kohya's or diffusers' layout, or a folder of diffusers or PEFT.

    Args:
        path: the file or folder.
        sites: the layers that a person changes.
        partial: leave out layers that are no sites, instead of refusing the file.

    Raises:
        BadFile: absent, pickled, truncated, damaged, not finite, or no LoRA. WrongBase: of another architecture or
            size. UserError: it changes layers that are no sites, and `partial` is not given.
    """
    sources = list(_sources(Path(path)))
    two = has_two_encoders(sites)
    known = {kohya_name(site, two): index for index, site in enumerate(sites)}
    layers = [layer for source in sources for layer in _layers(source, two)]
    if not layers:
        raise BadFile(f"{path} holds no LoRA layer, expected kohya's, diffusers' or PEFT's layout: give another file")
    if len({flat for _, flat, _ in layers}) < len(layers):
        raise BadFile(f"{path} holds one layer under two names, expected one layout: save it again in one")
    _check_architecture(path, sites, known, layers)
    found = {known[flat]: factors for _, flat, factors in layers if flat in known}
    others = {name: factors for name, flat, factors in layers if flat not in known}
    norms = {name: float(squared_norm(*factors)) for name, factors in others.items()}
    whole = sum(norms.values()) + sum(float(squared_norm(*factors)) for factors in found.values())
    left_out = {name: norm / whole if whole else 0.0 for name, norm in norms.items()}
    if left_out and not partial:
        raise UserError(
            f"{path} changes {len(left_out)} layers that a person here does not ({_some(list(left_out))}; "
            f"{100 * sum(left_out.values()):.1f} % of its change): give --partial to leave them out"
        )
    rank = max(len(down) for down, _ in found.values())
    factors = [_filled(found.get(index), site, rank) for index, site in enumerate(sites)]
    return ReadLoRA(factors, rank, len(found), left_out, sources[0].metadata)


def _sources(path: Path) -> Iterator[_Source]:
    """The file, or the files of a folder."""
    if not path.is_dir():
        tensors, metadata = load_tensors(path)
        yield _Source(path, tensors, metadata, configs=_embedded_configs(path, metadata))
        return
    if (path / DIFFUSERS_FILE).is_file():
        yield from _sources(path / DIFFUSERS_FILE)
        return
    folders = {"": path} if (path / PEFT_CONFIG).is_file() else {model: path / model for model in MODELS}
    there = {model: folder for model, folder in folders.items() if (folder / PEFT_CONFIG).is_file()}
    if not there:
        raise BadFile(f"{path} is a folder without {PEFT_CONFIG} or {DIFFUSERS_FILE}, expected a LoRA: give its file")
    for model, folder in there.items():
        if not (folder / PEFT_WEIGHTS).is_file() and any(folder.glob("*.bin")):
            raise BadFile(
                f"{folder} has only a pickled file (never opened here: it could run code), expected {PEFT_WEIGHTS}: "
                "save it again as safetensors"
            )
        tensors, metadata = load_tensors(folder / PEFT_WEIGHTS)
        config = _json(folder / PEFT_CONFIG, (folder / PEFT_CONFIG).read_text(encoding="utf-8", errors="replace"))
        yield _Source(folder / PEFT_WEIGHTS, tensors, metadata, model, dict.fromkeys(MODELS, config))


def _embedded_configs(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, Any]]:
    """PEFT's settings of each model that diffusers keeps in a file's metadata, if it does."""
    settings = _json(path, metadata.get(_DIFFUSERS_CONFIG, "{}"))
    split: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        model, _, name = key.partition(".")
        split.setdefault(model, {})[name] = value
    return split


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise BadFile(f"{path}: its LoRA settings are no JSON ({error}), expected PEFT's: save it again") from error
    if not isinstance(values, dict):
        raise BadFile(f"{path}: its LoRA settings are a {type(values).__name__}, expected an object: save it again")
    return values


def _layers(source: _Source, two: bool) -> list[tuple[str, str, Factors]]:
    """Every layer of a file: its own name, its flattened one, and its factors with their scale."""
    parts: dict[str, dict[str, Tensor]] = {}
    foreign = []
    for key, tensor in source.tensors.items():
        part = parse(key)
        if part is None:
            foreign.append(key)
            continue
        parts.setdefault(part.layer, {})[part.kind] = tensor
    if foreign and parts:
        raise BadFile(
            f"{source.path} holds {_some(foreign)}, which are no LoRA factors (LoHa, LoKr, DoRA and whole differences "
            "are not read), expected down, up and alpha alone: convert it to a plain LoRA"
        )
    return [_layer(source, name, part, two) for name, part in parts.items() if not _is_written_twice(name, parts)]


def _is_written_twice(name: str, parts: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether a text encoder's layer in PEFT's layout is there under today's path too, with the same numbers."""
    older = PEFT_PREFIX + TEXT_MODEL
    own, other = parts[name], parts.get(name.replace(older, PEFT_PREFIX), {})
    same = own.keys() == other.keys() and all(torch.equal(own[kind], other[kind]) for kind in own)
    return name.startswith(older) and same


def _layer(source: _Source, name: str, parts: Mapping[str, Tensor], two: bool) -> tuple[str, str, Factors]:
    if missing := {"down", "up"} - parts.keys():
        raise BadFile(f"{source.path} has no {missing.pop()} factor for {name}, expected both: make or copy it again")
    down, up = parts["down"].float(), parts["up"].float()
    shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
    if down.dim() in (2, 4) and up.dim() in (2, 4):
        down, up = down.flatten(1), up.flatten(1)  # of a convolution: (r, channels * kernel), (m, r)
    if down.dim() != 2 or up.dim() != 2 or len(down) != up.shape[1] or not len(down):
        raise BadFile(
            f"{source.path} is damaged (factors {shapes} of {name}), expected (r, n) and (m, r): copy it again"
        )
    flat = flatten(name, source.model, two)
    up = _scale(source, name, flat, len(down), parts.get("alpha")) * up
    if not (down.isfinite().all() and up.isfinite().all()):
        raise BadFile(f"{source.path}: the numbers of {name} are not all finite, expected finite ones: make it anew")
    return name, flat, (down, up)


def _scale(source: _Source, name: str, flat: str, rank: int, alpha: Tensor | None) -> float:
    """What dW is to be multiplied by: alpha over the rank; 1 where nothing is said."""
    if alpha is not None:
        if alpha.numel() != 1:
            raise BadFile(f"{source.path} is damaged (alpha of {name} is no number), expected one: copy it again")
        return float(alpha) / rank
    config = source.configs.get(model_of(flat))
    if not config:
        return 1.0
    if config.get("use_dora") or config.get("peft_type", "LORA") != "LORA":
        kind = "DoRA" if config.get("use_dora") else config["peft_type"]
        raise BadFile(f"{source.path} is a {kind}, expected a plain LoRA: convert it")
    patterns = config.get("alpha_pattern") or {}
    ends = (value for key, value in patterns.items() if f".{name}".endswith(f".{key.removeprefix('^')}"))
    try:
        value = float(next(ends, config.get("lora_alpha", rank)))
    except (TypeError, ValueError) as error:
        raise BadFile(f"{source.path}: lora_alpha is no number, expected one: save it again") from error
    return value / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_architecture(
    path: str | Path, sites: tuple[Site, ...], known: Mapping[str, int], layers: list[tuple[str, str, Factors]]
) -> None:
    """Raise WrongBase unless some layer is a site, and every one that is has the site's size."""
    made_for = architecture_of([name for name, _, _ in layers])
    guess = f", it seems to be for {made_for}" if made_for else ""
    if not any(flat in known for _, flat, _ in layers):
        names = _some([name for name, _, _ in layers])
        raise WrongBase(f"{path} changes no layer of this base ({names}{guess}): give a LoRA made for it")
    for name, flat, (down, up) in layers:
        if flat in known:
            site = sites[known[flat]]
            if (down.shape[1], len(up)) != (site.n_in, site.n_out):
                raise WrongBase(
                    f"{path} was made for another base: {name} has {down.shape[1]} inputs and {len(up)} outputs, here "
                    f"{site.n_in} and {site.n_out}{guess}: give a LoRA made for this base, or the right --base"
                )


def _filled(factors: Factors | None, site: Site, rank: int) -> Factors:
    """Factors of that rank, filled with zeros."""
    down, up = factors or (torch.zeros(0, site.n_in), torch.zeros(site.n_out, 0))
    more = rank - len(down)
    return torch.cat([down, down.new_zeros(more, site.n_in)]), torch.cat([up, up.new_zeros(site.n_out, more)], dim=1)


def _some(names: list[str]) -> str:
    """The first two names, and how many more."""
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
