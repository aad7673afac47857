"""How good the judges are themselves: each on true pictures of people it never saw, the tuning people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hyperdreambooth.evaluation.attributes import attribute_error
from hyperdreambooth.evaluation.features import ImageText, SelfSupervised
from hyperdreambooth.evaluation.identification import scene_recognised
from hyperdreambooth.evaluation.judges import AttributeReader, Judge, Recogniser, SceneClassifier
from hyperdreambooth.portraits.captions import EDIT_SCENES, STYLE_SCENES, STYLES, Scene
from hyperdreambooth.portraits.person import truth_matrix
from hyperdreambooth.portraits.pictures import draw
from hyperdreambooth.portraits.splits import TUNING
from hyperdreambooth.portraits.view import View
from recipes.features import found_again, prompt_matched
from recipes.judges import photographs_identified, portraits_identified
from recipes.photographs import Photographs


def own_scores(judge: Judge, people: int, photographs: Photographs) -> dict[str, float]:
    """The scores of a judge of any kind, by name, on the first `people` tuning portraits and on photographs.

    Recogniser: identification rate per style, other views among all. Scene classifier: share of scenes that it reads
    right, styles and the rest apart. Attribute reader: error, 0 none, 1 no better than a guess. Self-supervised one:
    portraits in all styles that are found again. Image-text model: those whose likeliest of all prompts is their own.
    """
    seeds = TUNING[:people]
    if isinstance(judge, Recogniser):
        return _identified(judge, seeds, photographs)
    if isinstance(judge, SceneClassifier):
        named = {"styles": STYLE_SCENES, "domains, contexts and edits": EDIT_SCENES}
        return {f"portraits, {name} read": _read(judge, seeds, scenes) for name, scenes in named.items()}
    if isinstance(judge, AttributeReader):
        seen = _drawn(seeds, [Scene()], judge.config.picture_size)
        return {"portraits, attribute error": attribute_error(judge.read(seen), truth_matrix(seeds))}
    if isinstance(judge, SelfSupervised):
        seen = _drawn(seeds, STYLE_SCENES, judge.config.picture_size)
        return {"portraits, found again": found_again(judge, seen, torch.Generator().manual_seed(0)).share}
    if isinstance(judge, ImageText):
        scenes = [(*STYLE_SCENES, *EDIT_SCENES)[row % len(STYLE_SCENES + EDIT_SCENES)] for row in range(len(seeds))]
        drawn = _drawn(seeds, scenes, judge.config.picture_size)
        return {"portraits, own prompt likeliest": prompt_matched(judge, drawn, scenes).share}
    raise TypeError(f"got a {type(judge).__name__}, expected one of the five judges")


def _identified(judge: Recogniser, seeds: Sequence[int], photographs: Photographs) -> dict[str, float]:
    scores = {
        f"portraits, {style}": portraits_identified(judge, seeds, style, np.random.RandomState(0)).share
        for style in STYLES
    }
    if photographs.names:
        generator = torch.Generator().manual_seed(0)
        scores |= {
            f"photographs, {style}": photographs_identified(judge, photographs, style, generator).share
            for style in STYLES
        }
    return scores


def _read(judge: SceneClassifier, seeds: Sequence[int], scenes: Sequence[Scene]) -> float:
    """On each person in one scene, in turn."""
    asked = [scenes[row % len(scenes)] for row in range(len(seeds))]
    return scene_recognised(judge.read(_drawn(seeds, asked, judge.config.picture_size)), asked).share


def _drawn(seeds: Sequence[int], scenes: Sequence[Scene], size: int) -> torch.Tensor:
    """Each person in a random view, the scenes in turn: (N, 3, size, size)."""
    random = np.random.RandomState(0)
    turns = [scenes[row % len(scenes)] for row in range(len(seeds))]
    return draw(seeds, [View.sample(random) for _ in seeds], turns, size)
