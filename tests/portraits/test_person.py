import numpy as np
import pytest
import torch

from hyperdreambooth.portraits.person import ATTRIBUTES, BY_NAME, HAIR_STYLES, Person, people_matrix, truth_matrix


def test_a_seed_is_a_person():
    assert Person(7) == Person(7)
    assert dict(Person(7).values) == dict(Person(7).values)
    assert dict(Person(7).values) != dict(Person(8).values)


def test_the_random_stream_is_frozen():
    # Written down once: another number means that every trained weight was trained on other people.
    values = Person(7).values
    assert [Person(7).choice(name) for name in ("hair_style", "beard", "glasses")] == STORED_CHOICES
    assert values["skin_tone"] == pytest.approx(STORED_SKIN_TONE, abs=1e-12)
    assert values["mole"] == STORED_MOLE


STORED_CHOICES = ["long curls", "full", "none"]
STORED_SKIN_TONE = 0.5223901280016119
STORED_MOLE = 2.0


def test_sampling_leaves_the_global_stream_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    Person(123_456)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_there_are_many_attributes_and_all_lie_in_their_range():
    assert len(ATTRIBUTES) >= 30
    levels = people_matrix(range(400))
    assert levels.shape == (400, len(ATTRIBUTES)) and levels.dtype == torch.float32
    assert levels.min() >= 0.0 and levels.max() <= 1.0
    spread = levels.std(dim=0)
    assert spread.min() > 0.1, dict(zip(BY_NAME, spread.tolist(), strict=True))


def test_every_choice_is_met():
    chosen = {a.name: {Person(seed).choice(a.name) for seed in range(1000)} for a in ATTRIBUTES if a.choices}
    assert all(chosen[a.name] == set(a.choices) for a in ATTRIBUTES if a.choices)


def test_people_are_tied_the_way_people_are():
    people = [Person(seed) for seed in range(600)]
    jaw = np.array([p.values["jaw_width"] for p in people])
    bearded = np.array([p.choice("beard") != "none" for p in people])
    assert jaw[bearded].mean() > jaw[~bearded].mean() + 0.05
    age, grey = (np.array([p.values[name] for p in people]) for name in ("age", "grey"))
    assert np.corrcoef(age, grey)[0, 1] > 0.7


def test_truth_reads_back_as_the_attributes():
    seeds = [3, 5, 900]
    truth = truth_matrix(seeds)
    assert truth.shape == (3, sum(a.width for a in ATTRIBUTES))
    start = 0
    for a in ATTRIBUTES:
        block = truth[:, start : start + a.width]
        for row, seed in zip(block, seeds, strict=True):
            value = Person(seed).values[a.name]
            if a.choices:
                assert row.sum() == 1.0 and int(row.argmax()) == int(value)
            else:
                assert a.low + float(row) * (a.high - a.low) == pytest.approx(value, abs=1e-5)
        start += a.width


def test_changed_replaces_values_and_refuses_strangers():
    bald = Person(7).changed(hair_style=HAIR_STYLES.index("bald"))
    assert bald.choice("hair_style") == "bald"
    assert {k for k in BY_NAME if bald.values[k] != Person(7).values[k]} <= {"hair_style"}
    with pytest.raises(KeyError, match="unknown attributes"):
        Person(7).changed(tail=1.0)
