"""The published encoders in tiny, with random numbers, against the library's own way with PIL pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from hyperdreambooth.base.tokenizer import build_tokenizer
from hyperdreambooth.cli import run as hdb
from hyperdreambooth.embedded import DEMO_PHOTO
from hyperdreambooth.errors import BadFile
from hyperdreambooth.evaluation import pretrained
from hyperdreambooth.evaluation.facenet import FORMAT, InceptionResnetV1, layout
from hyperdreambooth.evaluation.pretrained import Clip, Dino, FaceNet, Preparation, load_pretrained
from hyperdreambooth.faces import read_picture
from hyperdreambooth.files import load_tensors, save_tensors
from tests.evaluation.test_scores import OURS, add, begin, whole

SIDE = 32
TEXTS = ["a bronze statue of a face", "a face", "a neon face " * 9]  # the last is longer than the model reads
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 8,
}
DINO_FILE = {  # as the published one is written
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "size": SIDE,
}
CLIP_FILE = {
    "crop_size": SIDE,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": SIDE,
}


def randomise(model: torch.nn.Module) -> None:
    """Numbers that let what is shown through."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dino/ and clip/ as they are fetched."""
    folder = tmp_path_factory.mktemp("pretrained")
    tokenizer = build_tokenizer(TEXTS, 16)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**VISION, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    del text["image_size"], text["patch_size"]
    models = {
        "dino": ViTModel(ViTConfig(**VISION), add_pooling_layer=False),
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)),
    }
    for (name, model), values in zip(models.items(), (DINO_FILE, CLIP_FILE), strict=True):
        randomise(model)
        model.save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(values))
    tokenizer.save_pretrained(folder / "clip")
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The same, for a test that damages it."""
    shutil.copytree(folder, tmp_path / "pretrained")
    return tmp_path / "pretrained"


def pictures(count: int, height: int, width: int) -> Tensor:
    """Soft pictures of whole 8-bit numbers, which a PIL image holds as they are."""
    rough = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(rough, (height, width), mode="bilinear") * 255).round() / 255


def images(shown: Tensor) -> list[Image.Image]:
    return [Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()) for picture in shown]


def unit(numbers: Tensor) -> Tensor:
    return numbers / numbers.square().sum(dim=1, keepdim=True).sqrt()


@torch.no_grad()
def dino_by_the_library(folder: Path, shown: Tensor, **changed: Any) -> Tensor:
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    processor = ViTImageProcessorPil(**{**DINO_FILE, "size": {"height": SIDE, "width": SIDE}, **changed})
    return unit(model(**processor(images(shown), return_tensors="pt")).last_hidden_state[:, 0])


@torch.no_grad()
def clip_by_the_library(folder: Path, shown: Tensor, **changed: Any) -> Tensor:
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil(**{**CLIP_FILE, "size": {"shortest_edge": SIDE}, **changed})
    return unit(model.get_image_features(**processor(images(shown), return_tensors="pt")).pooler_output)


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize(("height", "width"), [(80, 80), (100, 70), (70, 101), (20, 30), (SIDE, SIDE)])
def test_pictures_are_prepared_as_the_library_does(folder: Path, height: int, width: int, resample: int) -> None:
    """To 1.5 steps of 8 bits: Pillow rounds between its two passes and after them, and there cuts off extremes."""
    shown = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    shown, resized = ((0.3 + 0.4 * shown) * 255).round() / 255, (height, width) != (SIDE, SIDE)
    ways = (
        (Dino.load(folder / "dino"), DINO_FILE, ViTImageProcessorPil, {"height": SIDE, "width": SIDE}),
        (Clip.load(folder / "clip"), CLIP_FILE, CLIPImageProcessorPil, {"shortest_edge": SIDE}),
    )
    for encoder, values, processor, size in ways:
        told, other = (encoder.preparation.told({**values, "resample": number}) for number in (resample, 5 - resample))
        made = processor(**{**values, "size": size, "resample": resample})(images(shown), return_tensors="pt")
        apart = (told(shown) - made.pixel_values).abs() * torch.tensor(told.std).view(3, 1, 1) * 255
        assert apart.max() <= (1.5 if resized else 1e-3)
        assert not resized or (told(shown) - other(shown)).abs().max() * 255 > 15


def test_what_the_filter_makes_brighter_than_white_is_white() -> None:
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    made = Preparation((20, 20), None, (0.0,) * 3, (1.0,) * 3)(edge)
    assert made.min() == 0 and made.max() == 1


@pytest.mark.parametrize(("height", "width", "apart"), [(SIDE, SIDE, 1e-5), (80, 80, 0.01), (100, 70, 0.01)])
def test_dino_is_the_librarys_class_token(folder: Path, height: int, width: int, apart: float) -> None:
    shown = pictures(3, height, width)
    embeddings, expected = Dino.load(folder / "dino").embed(shown), dino_by_the_library(folder / "dino", shown)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=apart)
    other = dino_by_the_library(folder / "dino", shown, image_mean=[0.5, 0.5, 0.5])
    assert (embeddings - other).abs().max() > 5 * apart  # so the comparison sees what is prepared otherwise
    assert (embeddings[0] - embeddings[1]).abs().max() > 10 * apart


@pytest.mark.parametrize(("height", "width", "apart"), [(SIDE, SIDE, 1e-5), (80, 80, 0.01), (100, 70, 0.01)])
def test_clip_sees_as_the_library_does(folder: Path, height: int, width: int, apart: float) -> None:
    """Of pictures that are not square, the middle."""
    shown = pictures(3, height, width)
    embeddings, expected = Clip.load(folder / "clip").embed(shown), clip_by_the_library(folder / "clip", shown)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=apart)
    assert (embeddings[0] - embeddings[1]).abs().max() > 10 * apart
    if height != width:
        squeezed = clip_by_the_library(folder / "clip", shown, size={"height": SIDE, "width": SIDE})
        assert (embeddings - squeezed).abs().max() > 5 * apart


@torch.no_grad()
def test_clip_reads_as_the_library_does_whatever_is_beside_a_text(folder: Path) -> None:
    clip, model = Clip.load(folder / "clip"), CLIPModel.from_pretrained(folder / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip")
    tokens = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    read = clip.embed_text(TEXTS)
    torch.testing.assert_close(read, unit(model.get_text_features(**tokens).pooler_output))
    torch.testing.assert_close(read, torch.cat([clip.embed_text([text]) for text in TEXTS]))
    assert (read[0] - read[1]).abs().max() > 0.01 and read.shape == (3, 24)


def test_many_are_looked_at_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dino, clip, shown = Dino.load(folder / "dino"), Clip.load(folder / "clip"), pictures(5, 40, 40)
    whole = [dino.embed(shown), clip.embed(shown), clip.embed_text(TEXTS)]
    monkeypatch.setattr(pretrained, "_BATCH", 2)
    parts = [dino.embed(shown), clip.embed(shown), clip.embed_text(TEXTS)]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.norm(dim=1), torch.ones(len(one)))
        assert one.dtype == torch.float32 and not one.requires_grad


def test_without_a_file_that_says_how_pictures_are_prepared_as_published(copied: Path) -> None:
    shown = pictures(2, SIDE, SIDE)  # nothing is resized, the published means and deviations hold
    for name, cls in (("dino", Dino), ("clip", Clip)):
        told = cls.load(copied / name).embed(shown)
        (copied / name / "preprocessor_config.json").unlink()
        torch.testing.assert_close(cls.load(copied / name).embed(shown), told)
    assert Clip.load(copied / "clip").preparation.size == SIDE


def test_what_the_file_says_is_followed() -> None:
    square, shorter = Preparation((8, 8), None, (0.5,) * 3, (0.5,) * 3), Preparation(8, (8, 8), (0.5,) * 3, (0.5,) * 3)
    assert square.told({}) == square and shorter.told({}) == shorter
    assert square.told({"size": 16}).size == (16, 16) and shorter.told({"size": 16}).size == 16
    assert square.told({"size": {"height": 4, "width": 6}}).size == (4, 6)
    assert shorter.told({"size": {"shortest_edge": 9}, "crop_size": {"height": 4, "width": 6}}).crop == (4, 6)
    assert shorter.told({"do_center_crop": False}) == square
    assert square.told({"do_resize": False}).size is None and square.told({"resample": 2}).mode == "bilinear"
    shown = pictures(1, 8, 8)
    assert torch.equal(square.told({"do_normalize": False})(shown), shown)
    torch.testing.assert_close(square(shown), shown * 2 - 1)


def test_facenet_takes_framed_faces_of_any_size() -> None:
    seen = []

    class Network(InceptionResnetV1):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.mean(dim=(2, 3))

    with torch.device("meta"):
        network = Network()
    facenet = FaceNet(network.to_empty(device="cpu"), "cpu")
    shown = pictures(2, 160, 160)
    assert facenet.embed(shown).shape == (2, 3) and not facenet.network.training
    torch.testing.assert_close(seen[0], (shown * 255 - 127.5) / 128)
    facenet.embed(pictures(2, 512, 400))  # nobody's: the middle
    middles = images(pictures(2, 512, 400)[..., 56:456, :])
    reduced = np.stack([np.asarray(image.resize((160, 160), 2)) for image in middles])
    expected = (torch.from_numpy(reduced).permute(0, 3, 1, 2) - 127.5) / 128
    torch.testing.assert_close(seen[1], expected, rtol=0, atol=0.02)
    face = F.interpolate(read_picture(DEMO_PHOTO).unsqueeze(0), (256, 256), mode="bicubic").clamp(0, 1)
    wide = F.pad(face, (300, 60, 150, 90), value=0.5)  # somewhere in a larger picture
    facenet.embed(face), facenet.embed(wide)
    (framed,), (found,) = seen[2:]
    unframed = F.interpolate(wide, (160, 160), mode="area")[0] * 2 - 1
    assert 2 * (framed - found).abs().mean() < (framed - unframed).abs().mean()


def test_all_three_come_from_one_folder(copied: Path) -> None:
    with pytest.raises(BadFile, match=r"no FaceNet weights at .*facenet.safetensors: fetch"):
        load_pretrained(copied)
    generator = torch.Generator().manual_seed(0)
    numbers = {name: torch.rand(shape, generator=generator) * 0.02 for name, shape in layout().items()}
    save_tensors(copied / "facenet.safetensors", numbers, {"format": FORMAT})
    loaded = load_pretrained(copied, "cpu")
    encoders = (loaded.face, loaded.dino, loaded.clip)
    assert [encoder.name for encoder in encoders] == ["FaceNet", "DINO", "CLIP"]
    assert [encoder.embed(pictures(1, 64, 64)).shape[1] for encoder in encoders] == [512, 32, 24]


def test_what_a_folder_lacks_comes_from_the_hub_where_that_is_asked_for(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaceNet, "load", lambda *_: "faces")
    for kind in (Dino, Clip):
        monkeypatch.setattr(kind, "load", lambda place, _: place)
    shutil.rmtree(copied / "dino")
    assert load_pretrained(copied).dino == copied / "dino"  # whose absence is said
    fetched = load_pretrained(copied, fetch=True)
    assert (fetched.dino, fetched.clip) == ("facebook/dino-vits16", copied / "clip")


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(tmp_path / "run")
    add(run, OURS, whole(1))
    for options, words in (
        (("--encoders", tmp_path / "none"), "no FaceNet weights at"),
        (("--fetch",), "got --fetch alone, expected --encoders too"),
    ):
        assert hdb(["report", str(run.path), *map(str, options)]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (run.path / "report").exists()


def spoilt(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes(change((place / name).read_bytes()))


def without(*names: str) -> Callable[[Path], object]:
    return lambda place: [(place / name).unlink() for name in names]


def pickled(place: Path) -> None:
    (place / "model.safetensors").rename(place / "pytorch_model.bin")


def lacking(place: Path) -> None:
    tensors, metadata = load_tensors(place / "model.safetensors")
    save_tensors(place / "model.safetensors", dict(list(tensors.items())[1:]), metadata)


def prepared(**values: object) -> Callable[[Path], object]:
    return lambda place: (place / "preprocessor_config.json").write_text(json.dumps(values))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"\(no config.json\): fetch .*hub id where there is network"),
    "no config": (without("config.json"), r"\(no config.json\): fetch .*model.safetensors"),
    "no weights": (without("model.safetensors"), "weights at .*: fetch"),
    "pickled": (pickled, "only pytorch_model.bin, pickled, which could run code"),
    "truncated": (spoilt("model.safetensors", lambda data: data[:-99]), "cannot be opened"),
    "lacking": (lacking, "lacks 1 tensors of .*: fetch"),
    "no JSON": (spoilt("config.json", lambda data: data[:-9]), "config.json is not JSON"),
    "another JSON": (spoilt("preprocessor_config.json", lambda data: b"[" + data + b"]"), "holds a list"),
    "another model": (spoilt("config.json", lambda data: b'{"model_type": "bert"}'), "type 'bert', expected"),
    "another size": (prepared(size=64, crop_size=64), r"makes pictures of \(64, 64\), expected the model's \(32, 32\)"),
    "as they come": (prepared(do_resize=False, do_center_crop=False), "makes pictures of"),
    "no such filter": (prepared(resample=1), "cannot be followed"),
    "a size in words": (prepared(size="large", crop_size="large"), "cannot be followed"),
    "greys": (prepared(image_mean=[0.5]), "cannot be followed"),
}


def refused(cls: type[Dino] | type[Clip], place: str | Path, words: str) -> str:
    """The one line with which a place is refused."""
    with pytest.raises(BadFile, match=words) as caught:
        cls.load(place)
    assert "\n" not in str(caught.value) and str(place) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(("name", "cls"), [("dino", Dino), ("clip", Clip)])
def test_bad_folders_are_told_apart(kind: str, name: str, cls: type[Dino] | type[Clip], copied: Path) -> None:
    spoil, words = BAD[kind]
    spoil(copied / name)
    refused(cls, copied / name, words)


def test_a_tokenizer_that_is_not_the_models_is_refused(copied: Path) -> None:
    build_tokenizer(["hat"], 16).save_pretrained(copied / "clip")
    refused(Clip, copied / "clip", "tokens, expected the model's")
    without("tokenizer.json", "tokenizer_config.json")(copied / "clip")
    refused(Clip, copied / "clip", "knows 2 tokens, expected the model's .*: fetch the tokenizer.json")


def test_the_models_of_one_another_are_refused(folder: Path) -> None:
    refused(Dino, folder / "clip", "type 'clip', expected 'vit': fetch facebook/dino-vits16")
    refused(Clip, folder / "dino", "type 'vit', expected 'clip'")


def test_a_hub_id_without_network_says_what_to_fetch() -> None:
    line = refused(Dino, "facebook/dino-vits16", "where there is no network, fetch facebook/dino-vits16")
    assert "config.json, model.safetensors, preprocessor_config.json" in line
    refused(Clip, "openai/clip-vit-base-patch32", "tokenizer.json")


@pytest.mark.parametrize(("name", "cls"), [("dino", Dino), ("clip", Clip)])
def test_a_hub_id_that_was_fetched_before_is_opened(
    name: str, cls: type[Dino] | type[Clip], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the cache, in the hub client's own layout."""
    cache, commit = tmp_path / "models--somebody--tiny", "0" * 40
    shutil.copytree(folder / name, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert torch.equal(
        cls.load("somebody/tiny").embed(pictures(1, 40, 40)), cls.load(folder / name).embed(pictures(1, 40, 40))
    )
