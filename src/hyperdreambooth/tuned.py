"""One person as numbers that stand in the place of the base's own: what DreamBooth and Textual Inversion make.

An `Identity` adds to a base and shares a batch with others; a `Tuned` person needs a copy of what it replaces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from hyperdreambooth.base.model import Base
from hyperdreambooth.errors import BadIdentityFile, NotFinite, UserError, WrongBase
from hyperdreambooth.files import load_metadata, load_tensors, save_tensors

FORMAT = "hyperdreambooth-tuned-1"
WORD = "rare_token"  # the name of an embedding of its own, (D,), for the base's rare token
_NETWORKS = ("unet", "text_encoder")
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_TEXT = ("base", "base_name", "prompt", "rare_token", "class_noun")


@dataclass(frozen=True, eq=False)
class Tuned:
    """A person in weights of their own.

    Attributes:
        tensors: by name: "unet." or "text_encoder." and the parameter's own name there, in its shape; or "rare_token",
            (D,), which takes the rare token's row of the text encoder's embeddings.
        base: fingerprint of the base model whose numbers they replace.
        base_name, prompt, rare_token, class_noun, how: as of an `Identity`.
    """

    tensors: Mapping[str, Tensor]
    base: str
    base_name: str = ""
    prompt: str = "a [V] face"
    rare_token: str = "sks"
    class_noun: str = "face"
    how: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """All numbers of the person."""
        return sum(int(tensor.numel()) for tensor in self.tensors.values())

    def on(self, base: Base, strength: float = 1.0) -> Base:
        """The base with this person's numbers in the place of its own; networks that keep theirs are shared.

        Args:
            base: that the person was made for; stays as it is.
            strength: how far its numbers go: 0 leaves them the base's, 1 makes them the person's.

        Raises:
            WrongBase: it has no such parameter.
        """
        networks: dict[str, nn.Module] = {name: getattr(base, name) for name in _NETWORKS}
        for name in _NETWORKS:
            own = {key: tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")}
            if own or (name == "text_encoder" and WORD in self.tensors):
                networks[name] = deepcopy(networks[name])
            _replace(networks[name], {key.removeprefix(f"{name}."): tensor for key, tensor in own.items()}, strength)
        tuned = base.with_networks(**networks)
        if WORD in self.tensors:
            _replace_row(word_embeddings(tuned), rare_token_id(tuned), self.tensors[WORD], strength)
        return tuned

    def save(self, path: str | Path, dtype: Literal["fp16", "fp32", "int8"] = "fp16") -> int:
        """Write one safetensors file, atomically, and return its size in bytes.

        A Textual Inversion's holds one tensor: diffusers' `load_textual_inversion(path, token="...")` opens it too.

        Raises:
            UserError: an unknown dtype. NotFinite: a number, in it. DiskFull: no room.
        """
        if dtype not in _DTYPES:
            raise UserError(f"got dtype {dtype!r} for whole weights, expected one of {', '.join(_DTYPES)}")
        tensors = {name: tensor.to(_DTYPES[dtype]) for name, tensor in self.tensors.items()}
        if wrong := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
            raise NotFinite(
                f"cannot write {path}: the numbers of {wrong} are not all finite in {dtype}, expected finite ones: "
                "fit the person anew with fewer steps, or choose fp32"
            )
        about = {"format": FORMAT, "how": json.dumps(dict(self.how))} | {key: getattr(self, key) for key in _TEXT}
        save_tensors(path, tensors, about)
        return Path(path).stat().st_size

    @classmethod
    def open(cls, path: str | Path, base: Base) -> Tuned:
        """Read a file that was made for this base. Raises as `read_tuned`, and WrongBase for one of another base."""
        person = read_tuned(path)
        if person.base != base.fingerprint:
            raise WrongBase.of(path, person.base, person.base_name, base.fingerprint, base.name)
        return person


def read_tuned(path: str | Path) -> Tuned:
    """Read a file of any base; the numbers come back as float32 on the CPU.

    Raises:
        BadFile, BadIdentityFile: not a whole, sound file of such a person.
    """
    tensors, metadata = load_tensors(path)
    try:
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']}")
        how, text = json.loads(metadata["how"]), {key: metadata[key] for key in _TEXT}
        if not isinstance(how, dict):
            raise ValueError(f"made how: {how}")
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:80]
        raise BadIdentityFile(f"{path} holds no person ({reason}), expected {FORMAT}: make it anew") from error
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise BadIdentityFile(f"{path}: the numbers are not all finite, expected finite ones: make it anew")
    return Tuned({name: tensor.float() for name, tensor in tensors.items()}, how=how, **text)


def is_tuned(path: str | Path) -> bool:
    """Whether a file says that it holds a `Tuned` person. Raises BadFile where it is no safetensors file."""
    return load_metadata(path).get("format") == FORMAT


def word_embeddings(base: Base) -> nn.Embedding:
    """The text encoder's embeddings of its vocabulary, (W, D)."""
    embeddings: nn.Embedding = base.text_encoder.get_input_embeddings()
    return embeddings


def rare_token_id(base: Base) -> int:
    """The number of the rare token in the vocabulary; of one that is several tokens, the first.

    Raises:
        UserError: the base's vocabulary has no such word.
    """
    ids = base.tokenizer(base.rare_token, add_special_tokens=False).input_ids
    if not ids:
        raise UserError(f'the base "{base.name}" has no token for {base.rare_token!r}, expected one: name another')
    return int(ids[0])


@torch.no_grad()
def _replace(network: nn.Module, tensors: Mapping[str, Tensor], strength: float) -> None:
    own = dict(network.named_parameters())
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise WrongBase(f"the person replaces {name} {tuple(tensor.shape)}, which this base has not: use its base")
        own[name].lerp_(tensor.to(own[name]), strength)


@torch.no_grad()
def _replace_row(embeddings: nn.Embedding, row: int, word: Tensor, strength: float) -> None:
    if word.shape != embeddings.weight.shape[1:]:
        shape = tuple(embeddings.weight.shape[1:])
        raise WrongBase(f"the person's word has shape {tuple(word.shape)}, this base's {shape}: use its base")
    embeddings.weight[row].lerp_(word.to(embeddings.weight), strength)
