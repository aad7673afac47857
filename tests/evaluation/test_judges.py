from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperdreambooth.errors import BadFile
from hyperdreambooth.evaluation.judges import (
    SCENE_OPTIONS,
    AttributeReader,
    Judge,
    JudgeConfig,
    Recogniser,
    SceneClassifier,
)
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.portraits.captions import EDIT_SCENES, STYLE_SCENES
from hyperdreambooth.portraits.person import ATTRIBUTES, truth_matrix

TINY = JudgeConfig(picture_size=16, channels=(8, 16), embedding=12)


def pictures(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch() -> None:
    recogniser, shown = Recogniser(TINY), pictures(5)
    embeddings = recogniser.embed(shown)
    assert embeddings.shape == (5, 12)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(embeddings[3:4], recogniser.embed(shown[3:4]))
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-4


def test_many_pictures_are_looked_at_in_parts() -> None:
    recogniser, shown = Recogniser(TINY), pictures(300)
    torch.testing.assert_close(recogniser.look(shown), recogniser(shown).detach())


def test_judges_see_where_things_are_and_take_any_size() -> None:
    recogniser, shown = Recogniser(TINY), pictures(1)
    assert (recogniser.embed(shown) - recogniser.embed(shown.flip(-1))).abs().max() > 1e-3
    assert recogniser.embed(pictures(2, 40)).shape == (2, 12)


def test_every_scene_that_the_grammar_knows_can_be_read() -> None:
    """The field and option that the raw numbers favour are those of the scene."""
    scenes = [*STYLE_SCENES, *EDIT_SCENES]
    raw = torch.zeros(len(scenes), SceneClassifier(TINY).outputs)
    for row, scene in enumerate(scenes):
        first = 0
        for field, options in SCENE_OPTIONS.items():
            raw[row, first + options.index(getattr(scene, field))] = 1.0
            first += len(options)

    class Fixed(SceneClassifier):
        def forward(self, shown: torch.Tensor) -> torch.Tensor:
            return raw

    assert Fixed(TINY).read(pictures(len(scenes))) == scenes


def test_attributes_are_read_in_the_layout_of_the_truth() -> None:
    truth = truth_matrix([3, 4])
    read = AttributeReader(TINY).read(pictures(2))
    assert read.shape == truth.shape and read.min() >= 0 and read.max() <= 1
    for part, attribute in zip(read.split([a.width for a in ATTRIBUTES], dim=1), ATTRIBUTES, strict=True):
        if attribute.choices:
            torch.testing.assert_close(part.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("kind", [Recogniser, SceneClassifier, AttributeReader])
def test_a_saved_judge_judges_the_same(kind: type[Judge], tmp_path: Path) -> None:
    judge, path = kind(TINY), tmp_path / "judge.safetensors"
    judge.save(path, torch.float32, about={"card": "of a test"})
    loaded = kind.load(path)
    assert torch.equal(loaded.look(pictures(3)), judge.look(pictures(3))) and not loaded.training
    assert load_tensors(path)[1]["card"] == "of a test"
    judge.save(path)
    torch.testing.assert_close(kind.load(path).look(pictures(3)), judge.look(pictures(3)), atol=0.02, rtol=0.02)


def test_files_that_hold_no_such_judge_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    SceneClassifier(TINY).save(path)
    with pytest.raises(BadFile, match=r"scene classifier, expected .* recogniser"):
        Recogniser.load(path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, dict(list(tensors.items())[1:]), metadata)
    with pytest.raises(BadFile, match="damaged"):
        SceneClassifier.load(path)


def test_the_shipped_size_is_small() -> None:
    assert sum(p.numel() for p in Recogniser().parameters()) < 1_000_000
