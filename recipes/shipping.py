"""Stage: what was trained becomes what the package holds, with a card beside each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.model import Base
from hyperdreambooth.baselines.e4t import E4TNetwork
from hyperdreambooth.embedded import (
    BASE,
    DEMO_PHOTO,
    E4T_NETWORK,
    FACE_VERIFIER,
    FOLDER,
    HYPERNETWORK,
    INDEPENDENT_NETWORK,
    JUDGES,
)
from hyperdreambooth.errors import WrongBase, WrongSpace
from hyperdreambooth.evaluation.features import ImageText, SelfSupervised
from hyperdreambooth.evaluation.judges import AttributeReader, Judge, Recogniser, SceneClassifier
from hyperdreambooth.files import load_tensors, save_tensors, write_atomically, write_bytes
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.hypernetwork.training import RESULT_FILE
from hyperdreambooth.people import encode_crowd
from hyperdreambooth.pipeline import space_of
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.splits import TUNING
from hyperdreambooth.portraits.view import View
from hyperdreambooth.sheet import save_png, to_image
from recipes import denoiser, e4t, hyper
from recipes.cards import Card, data_lines, seconds_in
from recipes.measures import own_scores
from recipes.photographs import learnt_faces
from recipes.workshop import WORLDS, Workshop

DEMO_SEED = 15_005  # a tuning person: the training never saw them
DEMO_SIZE = 256
KINDS = (Recogniser, SceneClassifier, AttributeReader, SelfSupervised, ImageText)
SCORES_KEY = "scores"  # in the metadata of a judge's file
# In the cache, where somebody has put them there: results of the benchmarks, and a person's words about the sheets.
QUALITY_FILE, FIRST_LIGHT_FILE, FACES_FILE, LOOKS_FILE = "quality.json", "first-light.json", "faces.json", "looks.txt"
EARLIER_FILE = "earlier.json"  # seconds of what was adopted, by training


def file_of(kind: type[Judge]) -> str:
    """The name of a judge's file, without its suffix."""
    return kind.kind.replace(" ", "-")


def ship(shop: Workshop) -> Iterator[str]:
    """Write the trained networks in half precision, their cards and the demo's picture.

    What was not trained in this cache stays as it ships: the judges can be shipped by themselves.
    """
    base = shop.trained_base() if shop.weights("denoiser").exists() else None
    if base is not None:
        yield f"the base {ship_base(shop, base)}"
    yield from (f"the {name}" for name in ship_judges(shop))
    if base is None:
        yield "the base and its hypernetwork stay as they are"
        return
    if (shop.cache / "hypernetwork" / RESULT_FILE).exists():
        ship_hypernetwork(shop, base)
        yield "the hypernetwork"
    elif _is_of_another_base(file := shop.out / HYPERNETWORK.relative_to(FOLDER), base):
        file.unlink()
        yield "no hypernetwork: the one that was there is of another base"
    view = View.reference(np.random.RandomState(5))
    save_png(shop.out / DEMO_PHOTO.relative_to(FOLDER), to_image(render([Person(DEMO_SEED)], [view], DEMO_SIZE)[0]))
    yield "the demo's photograph"


def _is_of_another_base(file: Path, base: Base) -> bool:
    """Whether there is a hypernetwork that this base could not use."""
    try:
        if file.exists():
            HyperNetwork.load(file, space_of(base), base.fingerprint, base.name)
    except (WrongBase, WrongSpace):
        return True
    return False


def adopt(shop: Workshop) -> Iterator[str]:
    """Bring what ships into the cache: judges, and where trainings start: VAE, denoiser, hypernetwork, encoder, E4T.

    What is in the cache already stays as it is. The cards' seconds come along, to be added to those of the trainings.
    """
    folder = shop.out / BASE.relative_to(FOLDER)
    base, earlier = load_base(folder), _earlier(shop) | seconds_in(folder)
    if not shop.weights("vae").exists():
        save_tensors(shop.weights("vae"), base.vae.state_dict(), {"spread": str(1 / base.vae.config.scaling_factor)})
    save_tensors(shop.start("denoiser"), denoiser.parameters(base))
    yield f"the base {base.fingerprint}"
    if names := list(_adopt_judges(shop)):
        earlier |= seconds_in(shop.out / JUDGES.relative_to(FOLDER))
        yield f"the {', '.join(names)}"
    file = shop.out / HYPERNETWORK.relative_to(FOLDER)
    if file.exists() and not shop.weights("encoder").exists():
        network = HyperNetwork.load(file, space_of(base), base.fingerprint, base.name)
        network.encoder.save(shop.weights("encoder"))
        save_tensors(shop.start("hypernetwork"), network.state_dict())
        earlier |= seconds_in(file.parent)
        yield "the hypernetwork"
    if (verifier := shop.out / FACE_VERIFIER.relative_to(FOLDER)).exists() and not shop.weights("verifier").exists():
        save_tensors(shop.weights("verifier"), {name: one.float() for name, one in load_tensors(verifier)[0].items()})
        earlier |= seconds_in(verifier.parent)
        yield "the face verifier"
    if (trained := shop.out / E4T_NETWORK.relative_to(FOLDER)).exists():
        save_tensors(shop.start("e4t"), load_tensors(trained)[0])
        earlier |= seconds_in(trained.parent)
        yield "what E4T learnt beforehand"
    write_atomically(shop.cache / EARLIER_FILE, lambda part: part.write_text(json.dumps(earlier)))


def _adopt_judges(shop: Workshop) -> Iterator[str]:
    """Take the shipped judges that are not in the cache, as trained; their kinds."""
    for kind in KINDS:
        file, weights = (
            shop.out / JUDGES.relative_to(FOLDER) / f"{file_of(kind)}.safetensors",
            shop.weights(file_of(kind)),
        )
        if file.exists() and not weights.exists():
            save_tensors(weights, *load_tensors(file))
            yield kind.kind


def ship_base(shop: Workshop, base: Base) -> str:
    """The base and its card; returns the fingerprint."""
    folder, scores = shop.out / BASE.relative_to(FOLDER), _scores(shop.cache / QUALITY_FILE, base.fingerprint)
    base.card = replace(base.card, seldom=str(scores.pop("seldom", "")))
    base.save(folder)
    size = base.picture_size
    Card(
        "The embedded base",
        f"A latent diffusion model of faces, {size} x {size} pixels, in Stable Diffusion's layout.",
        _data(shop),
        _seconds(shop, "vae", "denoiser"),
        bool(_earlier(shop)),
        scores,
        _text(shop.cache / LOOKS_FILE),
    ).write(folder)
    return base.fingerprint


def ship_judges(shop: Workshop) -> list[str]:
    """The judges that are trained, and their card, measured where their files do not say so; returns their names."""
    folder, scores = shop.out / JUDGES.relative_to(FOLDER), {}
    trained = [kind for kind in KINDS if shop.weights(file_of(kind)).exists()]
    for kind in trained:
        path = shop.weights(file_of(kind))
        judge, about = kind.load(path), load_tensors(path)[1]
        if SCORES_KEY not in about:
            about[SCORES_KEY] = json.dumps(own_scores(judge, shop.budget.judged_people, shop.split("tuning")))
        judge.save(folder / path.name, about={SCORES_KEY: about[SCORES_KEY]})
        scores[kind.kind] = json.loads(about[SCORES_KEY])
    if trained:
        Card(
            "The judges",
            f"{', '.join(kind.kind for kind in trained).capitalize()}: convolutional networks that say who is in a "
            "picture, what scene it is, what they look like, whether two pictures are alike, whether one fits a text. "
            "Nothing that they judge has learnt from them. "
            "Scores are of true pictures of people they never saw.",
            _data(shop),
            _seconds(shop, *(file_of(kind) for kind in trained)),
            bool(_earlier(shop)),
            scores,
        ).write(folder)
    return list(scores)


def ship_hypernetwork(shop: Workshop, base: Base) -> None:
    """The hypernetwork and its card."""
    folder = shop.cache / "hypernetwork"
    file = shop.out / HYPERNETWORK.relative_to(FOLDER)
    HyperNetwork.load(folder / RESULT_FILE, space_of(base), base.fingerprint, base.name).save(file)
    curve = hyper.last_of_curve(folder)
    seconds = {name: spent for name, spent in _earlier(shop).items() if name.startswith("hypernetwork, ")}
    for phase, line in curve.items():
        seconds[f"hypernetwork, {phase}"] = seconds.get(f"hypernetwork, {phase}", 0.0) + line["seconds"]
    held_out = {"people it never saw, at the end": curve["both"]["held_out"]} if "both" in curve else {}
    Card(
        "The hypernetwork",
        "One picture of a face to the LiDB numbers of its person on the embedded base (eq. 2 of the paper).",
        [*_data(shop), _crowds(shop)],
        _seconds(shop, "encoder") | seconds,
        bool(_earlier(shop)),
        held_out | _scores(shop.cache / FIRST_LIGHT_FILE, base.fingerprint),
    ).write(file.parent)


def ship_e4t(shop: Workshop) -> Iterator[str]:
    """What E4T learnt beforehand, and its card, where it is not there already."""
    file, trained = shop.out / E4T_NETWORK.relative_to(FOLDER), shop.weights("e4t").read_bytes()
    if file.exists() and file.read_bytes() == trained:
        return
    write_bytes(file, trained)
    booth = shop.shipped_booth()
    tuning = hyper.portraits(shop.size)(TUNING[0], TUNING[0] + shop.budget.judged_people)
    people = e4t.people_of(encode_crowd(booth.base, tuning), booth)
    Card(
        "E4T, a baseline",
        "A face's features to the word of its person, and everybody's weight offsets (arXiv 2302.12228), for the "
        "embedded base and the eyes of its hypernetwork. How good people are by it, beside all other methods, stands "
        "in docs/comparison.md; `hdb evaluate --methods hyperdreambooth,e4t` measures it.",
        _data(shop),
        _seconds(shop, "e4t"),
        shop.start("e4t").exists(),
        e4t.own_scores(E4TNetwork.load(file, booth), booth, people),
    ).write(file.parent)
    yield "what E4T learnt beforehand"


def ship_verifier(shop: Workshop) -> Iterator[str]:
    """The face verifier, in half precision, and its card, where it is not there already."""
    file, part = shop.out / FACE_VERIFIER.relative_to(FOLDER), shop.cache / "verifier-half.safetensors"
    save_tensors(part, {name: tensor.half() for name, tensor in load_tensors(shop.weights("verifier"))[0].items()})
    trained = part.read_bytes()
    part.unlink()
    if file.exists() and file.read_bytes() == trained:
        return
    write_bytes(file, trained)
    Card(
        "The face verifier",
        "A square around what OpenCV's cascades took for a face to how likely it is one; asked where no eyes are seen. "
        "How well faces are found with it, `python -m benchmarks.faces` measures.",
        data_lines(None, [file.relative_to(shop.photographs).as_posix() for file in learnt_faces(shop.photographs)]),
        _seconds(shop, "verifier"),
        scores=_counted(json.loads(_text(shop.cache / FACES_FILE) or "{}")),
    ).write(file.parent)
    yield "the face verifier"


def _counted(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Of what `benchmarks.faces` tells of each kind of photographs, how many: without names and times."""
    return {
        kind: {"photographs": one["photographs"], "found": one["found"], "false": len(one["false"])}
        for kind, one in found.items()
    }


def ship_independent(shop: Workshop) -> Iterator[str]:
    """The hypernetwork with independent layers, and its card, where it is not there already."""
    trained, file = shop.cache / "independent", shop.out / INDEPENDENT_NETWORK.relative_to(FOLDER)
    if file.exists() and file.stat().st_mtime >= (trained / RESULT_FILE).stat().st_mtime:
        return
    base = shop.trained_base()
    HyperNetwork.load(trained / RESULT_FILE, space_of(base), base.fingerprint, base.name).save(file)
    curve = hyper.last_of_curve(trained)
    Card(
        "A hypernetwork with independent layers, an ablation",
        "As the hypernetwork, but that no layer's numbers are predicted with a look at another's (as in HyperStyle).",
        _data(shop),
        _seconds(shop, "encoder") | {f"hypernetwork, {phase}": line["seconds"] for phase, line in curve.items()},
        scores={"people it never saw, at the end": curve["both"]["held_out"]},
    ).write(file.parent)
    yield "the hypernetwork with independent layers"


def _data(shop: Workshop) -> list[str]:
    names = shop.split("training").names if shop.framed.exists() else ()
    return data_lines(shop.budget.people - 1, names)


def _crowds(shop: Workshop) -> str:
    """Whom the hypernetwork learnt from, of all that is there, in words."""
    fitted = [hyper.people_fitted(shop.fitted(world)) for world in WORLDS]
    return (
        f"Of these the first {shop.crowd('portraits'):,} portraits, and of each photograph "
        f"{shop.budget.lookalikes} people made of it beside the one in it; {fitted[0]:,} portraits and "
        f"{fitted[1]:,} photographs were pre-optimised, whose numbers the second term of eq. 2 draws to."
    )


def _seconds(shop: Workshop, *stages: str) -> dict[str, float]:
    """What trainings took, read from their last checkpoints, with what they took before they were adopted."""
    seconds = {stage: spent for stage, spent in _earlier(shop).items() if stage in stages}
    for stage in stages:
        if (checkpoint := shop.checkpoint(stage)).exists():
            seconds[stage] = seconds.get(stage, 0.0) + checkpoint.read()[1]["seconds"]
    return seconds


def _earlier(shop: Workshop) -> dict[str, float]:
    return dict(json.loads(_text(shop.cache / EARLIER_FILE) or "{}"))


def _scores(path: Path, base: str) -> dict[str, object]:
    """What a benchmark left, where it was of this base (its fingerprint) and not of an earlier one."""
    scores = dict(json.loads(_text(path) or "{}"))
    return scores if scores.get("base") == base else {}


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
