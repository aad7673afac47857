"""The encoders of the paper's evaluation, for photographs at full size: FaceNet, DINO and CLIP, as they are published.

Weights are fetched by whoever measures: none ship. They are read from safetensors, never from pickled files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, PreTrainedModel, ViTModel
from transformers.utils import cached_file

from hyperdreambooth.base.libraries import quiet
from hyperdreambooth.errors import BadFile
from hyperdreambooth.evaluation.encoders import Encoders
from hyperdreambooth.evaluation.facenet import SIDE, InceptionResnetV1
from hyperdreambooth.faces import crop_face

_BATCH = 64  # pictures, or texts, looked at together
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_PREPARATION_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class Preparation:
    """How pictures become an encoder's input: resized, cut to their middle, then (x - mean) / std.

    `size` is of the whole picture, (H, W), or of its shorter side; None leaves it as it is.
    """

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str = "bicubic"

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> (N, 3, h, w)."""
        size = self._size(*pictures.shape[-2:])
        if size != tuple(pictures.shape[-2:]):
            pictures = F.interpolate(pictures, size, mode=self.mode, antialias=True).clamp(0, 1)
        if self.crop is not None:
            top, left = ((side - kept) // 2 for side, kept in zip(size, self.crop, strict=True))
            pictures = pictures[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (pictures.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        return (pictures - mean) / std

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        shorter = min(height, width)
        return self.size * height // shorter, self.size * width // shorter

    def told(self, values: Mapping[str, Any]) -> Preparation:
        """This one, with what the values of a preprocessor_config.json say in its place.

        A size that is one number is of the shorter side where a crop follows, else of both. Raises LookupError,
        TypeError or ValueError for values of another kind.
        """
        cut, size = values.get("do_center_crop", self.crop is not None), values.get("size", self.size)
        if isinstance(size, Mapping):
            size = size["shortest_edge"] if "shortest_edge" in size else _sides(size)
        elif not cut:
            size = _sides(size)
        plain = not values.get("do_normalize", True)
        return Preparation(
            size=size if values.get("do_resize", True) else None,
            crop=_sides(values.get("crop_size", self.crop)) if cut else None,
            mean=(0.0,) * 3 if plain else _channels(values.get("image_mean", self.mean)),
            std=(1.0,) * 3 if plain else _channels(values.get("image_std", self.std)),
            mode=_RESAMPLE[values["resample"]] if "resample" in values else self.mode,
        )


@dataclass(frozen=True)
class _Published:
    """Where a model's weights are had from, and what belongs to them."""

    name: str
    kind: str  # `model_type` in its config.json
    hub_id: str
    files: str
    preparation: Preparation  # where the files say nothing; its size is the model's

    def missing(self, place: str | Path, folder: bool, why: str = "") -> BadFile:
        """The error of weights that are not where they should be."""
        reason = f" ({why})" if why else ""
        if folder:
            text = f"fetch {self.hub_id} ({self.files}) into that folder, or give the hub id where there is network"
        else:
            text = f"where there is no network, fetch {self.hub_id} ({self.files}) into a folder and give that"
        return BadFile(f"no {self.name} weights at {place}{reason}: {text}")


_DINO = _Published(
    name="DINO",
    kind="vit",
    hub_id="facebook/dino-vits16",
    files=f"config.json, model.safetensors, {_PREPARATION_FILE}",
    preparation=Preparation((224, 224), None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
)
_CLIP = _Published(
    name="CLIP",
    kind="clip",
    hub_id="openai/clip-vit-base-patch32",
    files=f"config.json, model.safetensors, tokenizer.json, tokenizer_config.json, {_PREPARATION_FILE}",
    preparation=Preparation(
        224, (224, 224), mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
    ),
)
_FACENET_PREPARATION = Preparation((SIDE, SIDE), None, mean=(0.5,) * 3, std=(128 / 255,) * 3, mode="bilinear")


class FaceNet:
    """Is it the same person? Embeddings of the face of each picture, found and framed as photographs are."""

    name: str = "FaceNet"

    def __init__(self, network: InceptionResnetV1, device: torch.device | str | None = None) -> None:
        self.device = _device(device)
        self.network = network.to(self.device).eval()

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str | None = None) -> Self:
        """Read the file that `hdb convert` makes. device: None takes a GPU where there is one. Raises BadFile."""
        return cls(InceptionResnetV1.load(path), device)

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> unit embeddings (N, 512) float32 on the CPU."""
        faces = torch.stack([crop_face(one, SIDE).picture for one in pictures.float().cpu()])
        return _embed(faces, self.device, lambda some: self.network(_FACENET_PREPARATION(some)))


class Dino:
    """Do two pictures look alike? DINO's class token (arXiv 2104.14294), of a vision transformer on its own."""

    name: str = _DINO.name

    def __init__(self, model: ViTModel, preparation: Preparation, device: torch.device | str | None = None) -> None:
        self.device, self.preparation = _device(device), preparation
        self.model = model.to(self.device).eval()

    @classmethod
    def load(cls, name_or_path: str | Path = _DINO.hub_id, device: torch.device | str | None = None) -> Self:
        """Open a folder, or a hub id (text alone: a Path is a folder). device: None takes a GPU where there is one.

        Raises:
            BadFile: no whole, sound DINO there; says what to fetch.
        """
        model = _open(ViTModel, _DINO, name_or_path, add_pooling_layer=False)
        return cls(model, _preparation(_DINO, name_or_path, model.config.image_size), device)

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> unit embeddings (N, E) float32 on the CPU."""

        def see(some: Tensor) -> Tensor:
            seen: Tensor = self.model(pixel_values=self.preparation(some)).last_hidden_state  # (n, 1 + patches, E)
            return seen[:, 0]

        return _embed(pictures, self.device, see)


class Clip:
    """Does a picture show what a text says? CLIP (arXiv 2103.00020): pictures and texts in one space."""

    name: str = _CLIP.name

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        preparation: Preparation,
        device: torch.device | str | None = None,
    ) -> None:
        self.device, self.preparation, self.tokenizer = _device(device), preparation, tokenizer
        self.model = model.to(self.device).eval()

    @classmethod
    def load(cls, name_or_path: str | Path = _CLIP.hub_id, device: torch.device | str | None = None) -> Self:
        """Open a folder, or a hub id (text alone: a Path is a folder). device: None takes a GPU where there is one.

        Raises:
            BadFile: no whole, sound CLIP there; says what to fetch.
        """
        model = _open(CLIPModel, _CLIP, name_or_path)
        tokenizer = _tokenizer(name_or_path, model.config.text_config.vocab_size)
        return cls(model, tokenizer, _preparation(_CLIP, name_or_path, model.config.vision_config.image_size), device)

    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> unit embeddings (N, E) float32 on the CPU."""

        def see(some: Tensor) -> Tensor:
            seen: Tensor = self.model.vision_model(pixel_values=self.preparation(some)).pooler_output  # (n, D)
            projected: Tensor = self.model.visual_projection(seen)  # (n, E)
            return projected

        return _embed(pictures, self.device, see)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit embeddings (N, E) float32 on the CPU; what is beyond the model's length is left out."""
        longest = self.model.config.text_config.max_position_embeddings
        embeddings = []
        for first in range(0, len(texts), _BATCH):
            some = list(texts[first : first + _BATCH])
            tokens = self.tokenizer(some, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            read = self.model.text_model(**tokens.to(self.device)).pooler_output  # (n, D)
            embeddings.append(F.normalize(self.model.text_projection(read).float(), dim=1).cpu())  # (n, E)
        return torch.cat(embeddings)


def load_pretrained(folder: str | Path, device: torch.device | str | None = None, fetch: bool = False) -> Encoders:
    """Open facenet.safetensors, dino/ and clip/ of one folder. Raises BadFile that says what to fetch.

    fetch: take from the hub what the folder lacks of the last two.
    """
    folder = Path(folder)

    def place(name: str, published: _Published) -> str | Path:
        own = folder / name
        return published.hub_id if fetch and not own.exists() else own

    return Encoders(
        face=FaceNet.load(folder / "facenet.safetensors", device),
        dino=Dino.load(place("dino", _DINO), device),
        clip=Clip.load(place("clip", _CLIP), device),
    )


@torch.no_grad()
def _embed(pictures: Tensor, device: torch.device, see: Callable[[Tensor], Tensor]) -> Tensor:
    """What is seen in pictures (N, 3, H, W), a few at a time, as unit vectors (N, E) on the CPU."""
    return torch.cat([F.normalize(see(some.to(device)).float(), dim=1).cpu() for some in pictures.split(_BATCH)])


def _device(device: torch.device | str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _open(cls: Any, published: _Published, place: str | Path, **options: Any) -> PreTrainedModel:
    """A model's weights, all of them, in float32."""
    folder = _is_folder(place)
    config = _read_json(published, place, "config.json")
    if config is None:
        raise published.missing(place, folder, "no config.json")
    kind = config.get("model_type")
    if kind != published.kind:
        raise BadFile(f"{place} holds a model of type {kind!r}, expected {published.kind!r}: fetch {published.hub_id}")
    if folder and not any(Path(place).glob("model*.safetensors*")):
        pickled = sorted(path.name for path in Path(place).iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        raise published.missing(place, folder, f"only {pickled[0]}, pickled, which could run code" if pickled else "")
    try:
        with quiet():
            model, found = cls.from_pretrained(
                str(place),
                use_safetensors=True,
                local_files_only=folder,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # the libraries raise anything from KeyError to SafetensorError
        if not folder:
            raise published.missing(place, folder, _line(error)) from error
        raise BadFile(f"{place} cannot be opened ({_line(error)}): fetch {published.hub_id} again") from error
    if missing := sorted(found["missing_keys"]):
        raise BadFile(
            f"{place} lacks {len(missing)} tensors of {published.name}, such as {missing[0]}: "
            f"fetch {published.hub_id} again"
        )
    return model


def _tokenizer(place: str | Path, words: int) -> CLIPTokenizer:
    """CLIP's tokenizer: without its files the library makes one that knows nothing, and says nothing."""
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(place), local_files_only=_is_folder(place))
    except Exception as error:
        raise BadFile(f"the tokenizer in {place} cannot be opened ({_line(error)}): fetch it again") from error
    if len(tokenizer) != words:
        raise BadFile(
            f"the tokenizer in {place} knows {len(tokenizer)} tokens, expected the model's {words}: fetch the "
            "tokenizer.json and tokenizer_config.json that belong to it"
        )
    return tokenizer


def _preparation(published: _Published, place: str | Path, image_size: Any) -> Preparation:
    """What the model's own file says of its input; without one, the published model's, at this model's size."""
    sides, own = _sides(image_size), published.preparation
    default = replace(own, size=sides) if own.crop is None else replace(own, size=min(sides), crop=sides)
    values = _read_json(published, place, _PREPARATION_FILE)
    if values is None:
        return default
    try:
        told = default.told(values)
        made = tuple(told(torch.zeros(1, 3, sides[0] + 8, sides[1] + 24)).shape[-2:])
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {_line(error)}"
        raise BadFile(
            f"{place}/{_PREPARATION_FILE} cannot be followed ({reason}): fetch that of {published.hub_id}"
        ) from error
    if made != sides:
        raise BadFile(
            f"{place}/{_PREPARATION_FILE} makes pictures of {made}, expected the model's {sides}: "
            f"fetch that of {published.hub_id}"
        )
    return told


def _read_json(published: _Published, place: str | Path, name: str) -> dict[str, Any] | None:
    """The values of a file beside a model's weights, None where there is none. Raises BadFile for one not of JSON."""
    try:
        path = Path(place) / name if _is_folder(place) else Path(str(cached_file(str(place), name)))
        data = path.read_bytes()
    except Exception:  # of a folder: OSError; of the hub: whatever its client and the network raise
        return None
    try:
        values = json.loads(data)
    except ValueError as error:
        raise BadFile(f"{path} is not JSON ({_line(error)}): fetch that of {published.hub_id}") from error
    if not isinstance(values, dict):
        raise BadFile(f"{path} holds a {type(values).__name__}, expected a JSON object: fetch it again")
    return values


def _is_folder(place: str | Path) -> bool:
    return isinstance(place, Path) or Path(place).is_dir()


def _sides(size: Any) -> tuple[int, int]:
    """(H, W) of the ways in which configurations say it. Raises LookupError, TypeError or ValueError."""
    if isinstance(size, int):
        return size, size
    height, width = (size["height"], size["width"]) if isinstance(size, Mapping) else size
    return int(height), int(width)


def _channels(numbers: Any) -> tuple[float, ...]:
    """One number for each colour."""
    red, green, blue = numbers
    return float(red), float(green), float(blue)


def _line(error: Exception) -> str:
    """An error's text on one line, cut to 160 characters."""
    return " ".join(str(error).split())[:160] or type(error).__name__
