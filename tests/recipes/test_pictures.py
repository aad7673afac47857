from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hyperdreambooth.photographs import as_floats
from hyperdreambooth.portraits.captions import EDITS, STYLES, Scene
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.styles import stylize
from hyperdreambooth.portraits.view import View
from recipes.photographs import Photographs
from recipes.pictures import (
    Pictures,
    draw,
    in_styles,
    load_shards,
    make_shards,
    random_photographs,
    random_portraits,
)

make_portraits = partial(random_portraits, people=20, size=16)


def same(one: Pictures, other: Pictures) -> bool:
    return one.scenes == other.scenes and one.people == other.people and torch.equal(one.pictures, other.pictures)


def test_shards_go_on_where_they_stopped_and_do_not_depend_on_one_another(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert len(list(make_shards(whole, "portraits", 3, make_portraits, seed=5, shard=4))) == 3
    next(make_shards(stopped, "portraits", 3, make_portraits, seed=5, shard=4))
    first = (stopped / "portraits-000.safetensors").stat().st_mtime_ns
    assert len(list(make_shards(stopped, "portraits", 3, make_portraits, seed=5, shard=4))) == 2
    assert (stopped / "portraits-000.safetensors").stat().st_mtime_ns == first
    assert same(load_shards(stopped, "portraits", 3), load_shards(whole, "portraits", 3))
    (whole / "portraits-001.safetensors").unlink()  # made alone, it is the same
    assert len(list(make_shards(whole, "portraits", 3, make_portraits, seed=5, shard=4))) == 1
    assert same(load_shards(stopped, "portraits", 3), load_shards(whole, "portraits", 3))


def test_what_is_loaded_is_what_was_made(tmp_path: Path) -> None:
    list(make_shards(tmp_path, "portraits", 2, make_portraits, seed=5, shard=3))
    loaded, last = load_shards(tmp_path, "portraits", 2), make_portraits(np.random.RandomState(6), 3)
    assert len(loaded) == 6 and loaded.scenes[3:] == last.scenes and loaded.people[3:] == last.people
    assert torch.equal(loaded.pictures[3:], last.pictures)


def test_a_portrait_shows_the_person_and_the_scene_that_stand_beside_it() -> None:
    made = make_portraits(np.random.RandomState(3), 6)
    assert same(made, make_portraits(np.random.RandomState(3), 6))
    assert {scene.world for scene in made.scenes} == {"portrait"} and set(made.people) <= set(range(20))
    view = View.reference()
    scene = Scene("portrait", "watercolor", edit="wearing a hat")
    drawn = draw([made.people[0]], [view], [scene], 16)
    alone = stylize(render([Person(made.people[0])], [view], 16, scenes=[scene]), "watercolor")
    assert torch.equal(drawn, alone)
    plain = draw([made.people[0]], [view], [Scene("portrait")], 16)
    assert not torch.allclose(drawn, plain, atol=0.05)


def test_what_is_hard_to_learn_is_shown_more_often() -> None:
    """Of 400 portraits: half or more in a far domain, a place or an edit, and hats more often than hair of a colour."""
    scenes = random_portraits(np.random.RandomState(0), 400, people=20, size=16).scenes
    extras = [scene for scene in scenes if (scene.domain, scene.context, scene.edit) != (None, None, None)]
    edits, styles = Counter(scene.edit for scene in extras), Counter(scene.style for scene in scenes)
    assert 0.5 < len(extras) / len(scenes) < 0.6 and set(styles) == set(STYLES) and set(edits) == {None, *EDITS}
    assert max(edits["with blue hair"], edits["with red hair"]) < min(edits["wearing a hat"], edits["smiling"])
    assert min(styles["plain"], styles["bronze statue"]) > max(styles["comic"], styles["pop art"])
    assert all((scene.context, scene.edit) == (None, None) for scene in extras if scene.domain)


def test_each_picture_gets_its_own_style() -> None:
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    styled = in_styles(pictures, ["neon", "plain", "comic"])
    assert torch.equal(styled[0], stylize(pictures[:1], "neon")[0]) and torch.equal(styled[1], pictures[1])
    assert torch.equal(styled[2], stylize(pictures[2:], "comic")[0])


def test_a_photograph_is_a_cut_of_the_one_it_names(framed: Photographs) -> None:
    made = random_photographs(np.random.RandomState(0), 40, framed, 16)
    assert {scene.world for scene in made.scenes} == {"photo"} and min(made.people) >= -8 and max(made.people) < 0
    plain = [row for row, scene in enumerate(made.scenes) if scene.style == "plain"]
    assert plain and len({scene.style for scene in made.scenes}) > 4
    for row in plain:
        cuts = framed.pictures[-1 - made.people[row]].unfold(1, 16, 1).unfold(2, 16, 1)  # (3, 9, 9, 16, 16)
        cuts = cuts.permute(1, 2, 0, 3, 4).flatten(0, 1)
        shown = made.pictures[row]
        assert any(torch.equal(cut, shown) or torch.equal(cut.flip(-1), shown) for cut in cuts)


def test_floats_are_shares_of_255() -> None:
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.allclose(as_floats(levels), torch.tensor([0.0, 0.2, 1.0]))
