"""The two judges in the place of DINO and CLIP: their files, and what a text is to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperdreambooth.errors import BadFile
from hyperdreambooth.evaluation.features import ImageText, SelfSupervised
from hyperdreambooth.evaluation.judges import JudgeConfig, Recogniser

TINY = JudgeConfig(picture_size=16, channels=(8, 16), embedding=12)


@pytest.fixture
def model() -> ImageText:
    torch.manual_seed(0)
    made = ImageText(TINY).eval()
    assert isinstance(made, ImageText)
    return made


def test_a_file_comes_back(model: ImageText, tmp_path: Path) -> None:
    pictures, texts = (
        torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        ["a face", "a doll of a face"],
    )
    model.save(tmp_path / "model", torch.float32)
    again = ImageText.load(tmp_path / "model")
    assert torch.equal(again.embed(pictures), model.embed(pictures))
    assert torch.equal(again.embed_text(texts), model.embed_text(texts))
    for wrong in (SelfSupervised, Recogniser):
        with pytest.raises(BadFile, match="expected"):
            wrong.load(tmp_path / "model")


def test_embeddings_are_unit_and_of_each_alone(model: ImageText) -> None:
    texts = ["a watercolor of a face in the snow", "a face", "pixel art of a face wearing a hat"]
    together = model.embed_text(texts)
    assert together.shape == (3, 12) and torch.allclose(together.norm(dim=1), torch.ones(3))
    for row, text in enumerate(texts):  # padding beside longer texts changes nothing
        assert torch.allclose(model.embed_text([text])[0], together[row], atol=1e-6)
    pictures = torch.rand(2, 3, 16, 16)
    seen = SelfSupervised(TINY).eval().embed(pictures)
    assert seen.shape == (2, 12) and torch.allclose(seen.norm(dim=1), torch.ones(2))


def test_words_count_and_so_does_their_order(model: ImageText) -> None:
    first, same, other, unknown = model.embed_text(
        ["a face with blue hair", "A FACE  with blue hair", "a hair with blue face", "a face with blue zebra hair"]
    )
    assert torch.equal(first, same) and torch.equal(first, unknown)
    assert not torch.allclose(first, other, atol=1e-4)
    assert torch.equal(*model.tokens(["a [V] face", "a sks face"]))


def test_texts_without_a_known_word_and_endless_ones_are_read(model: ImageText) -> None:
    assert model.embed_text(["", "zebra"]).isfinite().all()
    assert model.tokens(["a face " * 100]).shape == (1, 40)
