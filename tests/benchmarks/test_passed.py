from __future__ import annotations

import pytest
import torch

from benchmarks import passed
from benchmarks.judges import Judges
from hyperdreambooth import HyperDreamBooth
from hyperdreambooth.base.model import Base
from hyperdreambooth.hypernetwork.model import PRESETS, build_hypernetwork
from hyperdreambooth.people import encode_people, read_people


def test_people_who_look_the_same_twice_are_told_apart_in_as_many_directions() -> None:
    few = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) @ torch.eye(3, 7)
    assert passed.passed(few, few + 1e-4) == passed.Passed(1.0, 3)
    strangers = torch.randn(12, 7, generator=torch.Generator().manual_seed(1))
    assert passed.passed(few, strangers).right < 0.5


def test_the_common_share_of_one_person_is_all_and_of_strangers_next_to_nothing() -> None:
    one = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
    assert passed.common_share(one.expand(8, -1, -1)) == pytest.approx(1.0)
    strangers = torch.randn(64, 5_000, generator=torch.Generator().manual_seed(1))
    assert passed.common_share(strangers) == pytest.approx(1 / 64, rel=0.1)


def test_what_is_the_persons_own_comes_back_under_other_noises() -> None:
    generator = torch.Generator().manual_seed(0)
    person, common = torch.randn(16, 4_000, generator=generator), 5 * torch.randn(40, 1, 4_000, generator=generator)
    noise = torch.randn(40, 16, 4_000, generator=generator)
    found = passed.own(person + common + 2 * noise)  # a fifth of what is not common is the person
    assert found.person == pytest.approx(1 / 5, rel=0.1)
    assert found.square == pytest.approx(5 * 4_000 * 15 / 16, rel=0.05)


def test_every_place_and_every_meeting_has_a_figure(fresh_base: Base, judges: Judges) -> None:
    booth = HyperDreamBooth(fresh_base)
    network = build_hypernetwork(PRESETS["tiny"], booth.space, booth.fingerprint).eval()
    told = passed.of_persons(network, judges.recogniser, range(15_000, 15_004), 16)
    assert list(told) == ["the judging recogniser", "the encoder's first feature", "theta"]
    assert all(0 <= some.right <= 1 and 1 <= some.directions <= 4 for some in told.values())
    pictures = encode_people(booth.base, read_people("portraits:15000-15003", 16, 2, lambda _: None))
    found = dict(passed.shares(booth, pictures))
    assert len(found) == 3 and all(len(row) == len(passed.LEVELS) for row in found.values())
    own, _, same = found.values()
    assert sum(same) > sum(own)  # the same noise shows in everybody's gradient
    levels = list(passed.own_by_level(booth, pictures, None, draws=4))
    assert len(levels) == len(passed.LEVELS) and all(some.square > 0 for some in levels)
