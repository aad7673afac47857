from dataclasses import replace

import numpy as np

from hyperdreambooth.portraits.person import truth_matrix
from hyperdreambooth.portraits.view import BACKGROUNDS, COLLARS, View


def test_views_follow_from_the_stream():
    assert View.sample(np.random.RandomState(3)) == View.sample(np.random.RandomState(3))
    random = np.random.RandomState(3)
    assert View.sample(random) != View.sample(random)


def test_a_reference_is_frontal_whatever_stands_behind():
    plain, random = View.reference(), np.random.RandomState(1)
    surroundings = ("background", "background_colour", "background_phase", "collar", "clothes_colour")
    for _ in range(8):
        view = View.reference(random)
        assert replace(view, **{name: getattr(plain, name) for name in surroundings}) == plain
    assert plain.yaw == plain.pitch == plain.roll == 0.0


def test_sampled_views_stay_in_range_and_meet_everything():
    random = np.random.RandomState(0)
    views = [View.sample(random) for _ in range(400)]
    assert max(abs(v.yaw) for v in views) <= 25.0 and np.std([v.yaw for v in views]) > 6.0
    assert all(-0.4 <= v.smile <= 1.0 and 0.0 <= v.mouth_open <= 1.0 and 0.9 <= v.zoom <= 1.1 for v in views)
    assert {v.background for v in views} == set(range(len(BACKGROUNDS)))
    assert {v.collar for v in views} == set(range(len(COLLARS)))


def test_views_do_not_change_the_truth():
    before = truth_matrix([1, 2, 3])
    View.sample(np.random.RandomState(1))
    assert (truth_matrix([1, 2, 3]) == before).all()
