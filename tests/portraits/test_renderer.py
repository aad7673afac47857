from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from hyperdreambooth.faces import to_picture
from hyperdreambooth.portraits.captions import CONTEXTS, DOMAINS, EDITS, Scene
from hyperdreambooth.portraits.person import ATTRIBUTES, BEARDS, EARRINGS, GLASSES, HAIR_STYLES, Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.view import BACKGROUNDS, COLLARS, View

REFERENCE = View.reference()
SYMMETRIC = {"mole": 0, "freckles": 0, "age": 0, "hair_style": 0}


def draw(person: Person, view: View = REFERENCE, scene: Scene | None = None, size: int = 64) -> Tensor:
    return render([person], [view], size, None if scene is None else [scene])[0]


def change(a: Tensor, b: Tensor) -> float:
    """Mean difference over the 16 pixels that differ most (both eyes have about 30), in 1/255."""
    return 255.0 * float((a - b).abs().mean(dim=0).flatten().topk(16).values.mean())


def views(count: int, seed: int = 0) -> list[View]:
    random = np.random.RandomState(seed)
    return [View.sample(random) for _ in range(count)]


def test_pictures_have_the_promised_shape_and_range():
    pictures = render([Person(s) for s in range(5)], views(5), size=48)
    assert pictures.shape == (5, 3, 48, 48) and pictures.dtype == torch.float32
    assert pictures.min() >= 0.0 and pictures.max() <= 1.0 and torch.isfinite(pictures).all()
    assert render([], [], size=32).shape == (0, 3, 32, 32)


def test_the_same_numbers_give_the_same_picture():
    assert torch.equal(draw(Person(4), views(1)[0]), draw(Person(4), views(1)[0]))


def test_the_pictures_of_two_people_are_known():
    """On every machine, in every place and colour: within 1 of 255."""
    with Image.open(Path(__file__).parent / "known.png") as image:
        known = to_picture(image)  # (3, 64, 128)
    for number, seed in enumerate((7, 8)):
        expected = known[:, :, 64 * number : 64 * (number + 1)]
        assert (draw(Person(seed)) - expected).abs().max() <= 1.51 / 255  # half of it is the file's rounding


def test_many_people_at_once_equal_one_by_one():
    people = [Person(40 + i).changed(hair_style=i) for i in range(len(HAIR_STYLES))]
    scenes = [Scene(context=CONTEXTS[i % 5]) if i % 3 else Scene(edit=EDITS[i % 6]) for i in range(len(people))]
    together = render(people, views(len(people)), 64, scenes)
    for i, view in enumerate(views(len(people))):
        assert torch.allclose(draw(people[i], view, scenes[i]), together[i], atol=0.5 / 255.0), people[i]


def test_sizes_agree():
    people, seen = [Person(s) for s in range(60, 68)], views(8)
    small = render(people, seen, 64)
    fine = avg_pool2d(render(people, seen, 256), 4)
    assert (small - fine).abs().mean() < 0.012
    assert torch.allclose(
        render(people[:2], seen[:2], 32, oversample=4), avg_pool2d(render(people[:2], seen[:2], 128), 4)
    )


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda a: a.name)
def test_every_attribute_can_be_seen(attribute):
    person = Person(12).changed(
        hair_style=HAIR_STYLES.index("side part"),
        hair_colour=2,
        glasses=0,
        beard=0,
        mole=0,
        age=0.2,
        grey=0.0,
        skin_tone=0.2,
    )
    if attribute.name == "frame_colour":
        person = person.changed(glasses=GLASSES.index("square"))
    if attribute.name == "hair_length":
        person = person.changed(hair_style=HAIR_STYLES.index("bob"))
    if attribute.choices:
        options = [draw(person.changed(**{attribute.name: i})) for i in range(len(attribute.choices))]
        pairs = [(a, b) for i, a in enumerate(options) for b in options[:i]]
    else:
        low, high = (person.changed(**{attribute.name: value}) for value in (attribute.low, attribute.high))
        pairs = [(draw(low), draw(high))]
    assert min(change(a, b) for a, b in pairs) > 6.0


def test_shapes_show_without_colours():
    grey = [draw(Person(3).changed(hair_style=i)).mean(dim=0, keepdim=True) for i in range(len(HAIR_STYLES))]
    assert min(change(a, b) for i, a in enumerate(grey) for b in grey[:i]) > 50.0
    for name, choices in (("beard", BEARDS), ("glasses", GLASSES), ("earrings", EARRINGS)):
        grey = [
            draw(Person(3).changed(hair_style=2, **{name: i})).mean(dim=0, keepdim=True) for i in range(len(choices))
        ]
        assert min(change(a, b) for i, a in enumerate(grey) for b in grey[:i]) > 12.0, name


@pytest.mark.parametrize(
    "fields",
    [{"yaw": 20.0}, {"pitch": 9.0}, {"roll": 8.0}, {"light_x": 0.8}, {"light_warmth": 0.9}, {"mouth_open": 1.0},
     {"smile": 1.0}, {"eyelids": 0.2}, {"gaze_x": 1.0}, {"brow_raise": 1.0}, {"zoom": 1.07}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_every_view_can_be_seen(fields):
    assert change(draw(Person(5)), draw(Person(5), replace(REFERENCE, **fields))) > 5.0


def test_background_and_clothes_leave_the_face_alone():
    person = Person(5).changed(hair_style=2, beard=0)
    faces = [
        draw(person, replace(REFERENCE, background=i, background_phase=0.1 * i, collar=i % len(COLLARS)))[
            :, 24:50, 22:42
        ]
        for i in range(len(BACKGROUNDS))
    ]
    assert all(torch.allclose(face, faces[0], atol=1e-6) for face in faces)


def test_turning_left_mirrors_turning_right():
    person = Person(5).changed(**SYMMETRIC)
    left, right = (draw(person, replace(REFERENCE, yaw=yaw, light_x=0.0)) for yaw in (-18.0, 18.0))
    assert (left - right.flip(2)).abs().mean() < 0.003
    assert (left - right).abs().mean() > 0.02


def test_framing_moves_the_person():
    person, view = Person(9), replace(REFERENCE, background_colour=(0.5, 0.5, 0.5))
    moved = draw(person, replace(view, dx=4 / 64, dy=3 / 64))
    assert torch.allclose(draw(person, view)[:, 22:48, 22:42], moved[:, 25:51, 26:46], atol=1e-4)


def eyes_in(view: View) -> tuple[float, float]:
    """Height of the eyes and the distance between them in a frontal view, in picture heights, by a blink."""
    person = Person(5).changed(**SYMMETRIC, glasses=0, beard=0)
    blink = (draw(person, view, size=128) - draw(person, replace(view, eyelids=0.1), size=128)).abs().sum(dim=0)
    rows, columns = blink.sum(dim=1), blink.sum(dim=0)
    axis = (torch.arange(128) + 0.5) / 128
    left, right = ((columns * axis * half).sum() / (columns * half).sum() for half in (axis < 0.5, axis > 0.5))
    return float((rows * axis).sum() / rows.sum()), float(right - left)


def test_eyes_are_where_face_crops_have_them():
    height, apart = eyes_in(REFERENCE)
    assert height == pytest.approx(0.48, abs=0.02) and apart == pytest.approx(0.24, abs=0.04)


def test_zoom_enlarges_in_proportion():
    near, far = (eyes_in(replace(REFERENCE, zoom=zoom))[1] for zoom in (1.1, 0.9))
    assert near / far == pytest.approx(1.1 / 0.9, rel=0.02)


SCENES = [*(Scene(context=c) for c in CONTEXTS), *(Scene(edit=e) for e in EDITS), *(Scene(domain=d) for d in DOMAINS)]


@pytest.mark.parametrize("scene", SCENES, ids=lambda s: s.context or s.edit or s.domain)
def test_every_scene_can_be_seen(scene):
    person = Person(20).changed(hair_style=HAIR_STYLES.index("bob"), age=0.2, grey=0.0, glasses=0)
    assert change(draw(person), draw(person, scene=scene)) > 20.0


def test_an_edit_changes_what_it_says():
    person = Person(20).changed(hair_style=HAIR_STYLES.index("bob"), glasses=0)
    plain = draw(person)
    hat = draw(person, scene=Scene(edit="wearing a hat"))
    assert torch.allclose(plain[:, 30:], hat[:, 30:], atol=0.02) and change(plain[:, :22], hat[:, :22]) > 60.0
    shades = (plain - draw(person, scene=Scene(edit="wearing sunglasses"))).abs().mean(dim=0)
    assert shades[24:38].mean() > 20 * shades[44:].mean()
    for edit, channel in (("with blue hair", 2), ("with red hair", 0)):
        gain = (draw(person, scene=Scene(edit=edit)) - plain)[:, 4:14, 24:40].mean(dim=(1, 2))
        assert int(gain.argmax()) == channel and gain[channel] > 0.1


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_far_domain_keeps_people_apart(domain):
    people = [Person(s) for s in range(500, 516)]
    there = render(people, [REFERENCE] * 16, 64, [Scene(domain=domain)] * 16)
    here = render(people, [REFERENCE] * 16, 64)
    distance = torch.cdist(there.flatten(1), here.flatten(1))  # (16, 16)
    assert distance.argmin(dim=1).tolist() == list(range(16))


@pytest.mark.parametrize(("arguments", "match"), [
    (([Person(1)], []), "1 people, 0 views"),
    (([Person(1)], [REFERENCE], 0), "size 0"),
    (([Person(1)], [REFERENCE], 8, None, 0), "oversample 0"),
])  # fmt: skip
def test_bad_requests_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        render(*arguments)
