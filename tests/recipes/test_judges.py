from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hyperdreambooth.evaluation.judges import AttributeReader, JudgeConfig, Recogniser, SceneClassifier
from hyperdreambooth.fitting.steps import Checkpoint, FitConfig, Run
from hyperdreambooth.hypernetwork.encoder import EncoderConfig, FaceEncoder
from hyperdreambooth.portraits.captions import Scene
from hyperdreambooth.portraits.person import ATTRIBUTES, truth_matrix
from recipes.judges import (
    Batch,
    EncoderTask,
    PeopleSampler,
    attribute_loss,
    contrastive_loss,
    photographs_identified,
    portraits_identified,
    random_people,
    scene_labels,
    select,
    train_attribute_reader,
    train_encoder,
    train_recogniser,
    train_scene_classifier,
    true_to_person,
)
from recipes.photographs import Photographs
from recipes.pictures import Pictures

TINY = JudgeConfig(picture_size=16, channels=(8, 16), embedding=12)


@pytest.fixture(scope="module")
def portraits() -> Pictures:
    return random_people(np.random.RandomState(0), 24, people=1000, per_person=4, size=16)


@pytest.fixture(scope="module")
def photographs() -> Pictures:
    """Six coarse patterns, four pictures of each."""
    patterns = torch.randint(256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shown = patterns.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)  # (6, 3, 16, 16)
    people = tuple(-1 - row for row in range(6) for _ in range(4))
    return Pictures(shown.repeat_interleave(4, dim=0), (Scene("photo"),) * 24, people)


def losses(run: Run) -> list[float]:
    return [report.loss for report in run]


def test_people_have_several_pictures_each_in_scenes_of_their_own(portraits: Pictures) -> None:
    assert portraits.pictures.shape == (24, 3, 16, 16) and portraits.pictures.dtype == torch.uint8
    assert sorted(portraits.people.count(person) for person in set(portraits.people)) == [4] * 6
    assert len(set(portraits.scenes)) > 6
    again = random_people(np.random.RandomState(0), 24, people=1000, per_person=4, size=16)
    assert again.people == portraits.people and torch.equal(again.pictures, portraits.pictures)
    plain = random_people(np.random.RandomState(0), 24, people=1000, per_person=4, size=16, plain=True)
    assert plain.people == portraits.people and set(plain.scenes) == {Scene("portrait")}


def test_a_sampler_draws_distinct_people_and_pictures(generator: torch.Generator) -> None:
    people = (7, -3, 7, 5, 5, 5, -3, 7, 9, 9)
    sampler = PeopleSampler(people, Batch(people=3, pictures=2))
    for _ in range(50):
        rows, labels = sampler(generator)
        assert len(set(rows.tolist())) == 6
        drawn = [people[row] for row in rows.tolist()]
        assert drawn[::2] == drawn[1::2] and len(set(drawn)) == 3
        assert labels.tolist()[::2] == labels.tolist()[1::2] and len(set(labels.tolist())) == 3


def test_a_person_with_too_few_pictures_is_repeated(generator: torch.Generator) -> None:
    rows, _ = PeopleSampler((1, 2, 2), Batch(people=2, pictures=3))(generator)
    assert sorted(rows.tolist())[:3] == [0, 0, 0] and set(rows.tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="at least the 3"):
        PeopleSampler((1, 2, 2), Batch(people=3))


def test_contrastive_loss_is_its_formula_written_out(generator: torch.Generator) -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=1)
    people = torch.tensor([0, 1, 0, 1, 0, 2])[[0, 1, 2, 3, 4, 1]]
    expected = 0.0
    for i in range(6):
        others = [k for k in range(6) if k != i]
        share = {k: float(torch.exp(embeddings[i] @ embeddings[k] / 0.5)) for k in others}
        same = [k for k in others if people[k] == people[i]]
        expected -= sum(np.log(share[k] / sum(share.values())) for k in same) / len(same) / 6
    assert float(contrastive_loss(embeddings, people, 0.5)) == pytest.approx(expected, rel=1e-5)


def test_attribute_loss_is_least_at_the_truth() -> None:
    truth = truth_matrix([1, 2, 3])
    choices = torch.cat([torch.full((attribute.width,), bool(attribute.choices)) for attribute in ATTRIBUTES])
    best = torch.where(choices, 20 * truth, torch.logit(truth, eps=1e-6))
    assert attribute_loss(best, truth) < attribute_loss(best.roll(1, dims=0), truth) / 2
    for change in (-0.5, 0.5):
        assert attribute_loss(best, truth) < attribute_loss(best + change * ~choices, truth)


def test_the_recogniser_learns_to_tell_people_apart(photographs: Pictures, generator: torch.Generator) -> None:
    recogniser = Recogniser(TINY)
    run = train_recogniser(recogniser, [(photographs, Batch(6, 4))], FitConfig(30, lr=3e-3), generator)
    reports = list(run)
    assert reports[-1].loss < 0.9 * reports[0].loss and reports[-1].metrics["nearest"] > 0.7


def test_worlds_are_told_apart_each_by_itself(
    portraits: Pictures, photographs: Pictures, generator: torch.Generator
) -> None:
    """The loss of a batch of two worlds is that of a batch of one: no pairs across."""
    recogniser = Recogniser(TINY)
    for network in recogniser.parameters():
        torch.nn.init.zeros_(network)  # everybody looks the same: the loss is the logarithm of the others in the batch
    worlds = [(portraits, Batch(4, 3)), (photographs, Batch(4, 3))]
    report = next(iter(train_recogniser(recogniser, worlds, FitConfig(1), generator)))
    assert report.loss == pytest.approx(np.log(11), rel=1e-4)


def test_scenes_and_attributes_are_learnt(
    portraits: Pictures, photographs: Pictures, generator: torch.Generator
) -> None:
    run = train_scene_classifier(SceneClassifier(TINY), portraits, photographs, 16, FitConfig(25, lr=3e-3), generator)
    scene = losses(run)
    assert np.mean(scene[-5:]) < 0.9 * np.mean(scene[:5])
    read = losses(train_attribute_reader(AttributeReader(TINY), portraits, 16, FitConfig(25, lr=3e-3), generator))
    assert read[-1] < 0.95 * read[0]


def test_labels_name_the_options_of_a_scene() -> None:
    assert scene_labels([Scene(), Scene(style="neon", domain="doll", edit="smiling")]).tolist() == [
        [0, 0, 0, 0],
        [5, 1, 0, 3],
    ]


def test_the_encoder_learns_from_both_worlds_and_resumes(
    portraits: Pictures, photographs: Pictures, tmp_path: Path
) -> None:
    def run(name: str, config: FitConfig) -> tuple[EncoderTask, list[float]]:
        torch.manual_seed(0)
        task = EncoderTask(FaceEncoder(EncoderConfig(16, patch=4, width=32, depth=1, heads=2)))
        training = torch.Generator().manual_seed(1)
        checkpoint = Checkpoint(tmp_path / name)
        worlds = [(portraits, Batch(4, 2)), (photographs, Batch(4, 2))]
        found = train_encoder(task, worlds, config, training, checkpoint)
        return task, losses(found)

    whole, seen = run("whole", FitConfig(12, lr=3e-3))
    assert seen[-1] < seen[0]
    run("parts", FitConfig(5, lr=3e-3))
    parts, _ = run("parts", FitConfig(12, lr=3e-3))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, msg=name)


def test_edits_and_far_domains_hide_what_is_true_of_a_person(portraits: Pictures) -> None:
    kept = select(portraits, true_to_person)
    assert 0 < len(kept) < len(portraits) == len(portraits.scenes)
    assert len(kept.pictures) == len(kept.scenes) == len(kept.people)
    assert not any(scene.edit or scene.domain for scene in kept.scenes)


def test_a_recogniser_that_knows_nothing_has_the_rate_of_chance(generator: torch.Generator) -> None:
    recogniser = Recogniser(TINY)
    for parameter in recogniser.parameters():
        torch.nn.init.zeros_(parameter)
    rate = portraits_identified(recogniser, range(5), "neon", np.random.RandomState(0), views=1)
    assert (rate.hits, rate.trials) == (1, 5)  # all alike: the first is always the nearest
    pictures = torch.randint(256, (4, 3, 20, 20), generator=generator, dtype=torch.uint8)
    found = photographs_identified(recogniser, Photographs(pictures, tuple("abcd")), "comic", generator)
    assert (found.hits, found.trials) == (1, 4)
