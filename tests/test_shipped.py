"""What ships: opened by the libraries that users have, within the size that was promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.judges import Judges
from benchmarks.subjects import portraits
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.baselines.e4t import E4TNetwork
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.embedded import BASE, DEMO_PHOTO, E4T_NETWORK, FOLDER, HYPERNETWORK, JUDGES
from hyperdreambooth.evaluation.encoders import Panel
from hyperdreambooth.evaluation.features import ImageText, SelfSupervised
from hyperdreambooth.evaluation.identification import identification_rate
from hyperdreambooth.evaluation.judges import AttributeReader, Judge, Recogniser, SceneClassifier
from hyperdreambooth.faces import crop_face, read_picture
from hyperdreambooth.personalization import PersonalizeConfig
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.portraits.captions import EDIT_SCENES, STYLE_SCENES, Scene, caption
from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.pictures import draw
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.view import View

MEGABYTE = 1_000_000


def test_plain_diffusers_draws_the_same_picture_with_the_shipped_base() -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    base = load_base()
    noise = base.noise(1, generator := torch.Generator().manual_seed(0))
    pipeline = StableDiffusionPipeline.from_pretrained(BASE, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    prompt, steps, guidance = "a watercolor of a face", 4, 3.0
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
    theirs = pipeline(prompt, generator=torch.Generator().manual_seed(0), **settings).images
    states = base.encode_prompts([prompt])
    with torch.inference_mode():
        latents = base.sample(states, base.encode_prompts([""]), noise, steps, guidance, generators=[generator])
        ours = base.decode(latents)
    assert ours.shape == (1, 3, 64, 64) and ours.std() > 0.05  # a picture, not a plain colour
    assert (ours - theirs).abs().max() < 1e-3


def test_files_are_as_small_as_promised() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 45 * MEGABYTE
    assert max(path.stat().st_size for path in files) <= 15 * MEGABYTE
    assert all((folder / "README.md").is_file() for folder in (BASE, JUDGES, HYPERNETWORK.parent))


def test_the_shipped_hypernetwork_is_the_shipped_bases_and_tells_faces_apart() -> None:
    booth = HyperDreamBooth.load()
    assert booth.hypernetwork is not None and booth.hypernetwork.base == booth.fingerprint
    faces = render([Person(seed) for seed in (15_000, 15_001)], [View.reference()] * 2, booth.base.picture_size)
    one, other = booth.hypernetwork(faces).flatten(1)
    assert one.isfinite().all() and (one - other).norm() > 0.1 * one.norm()


@pytest.mark.parametrize("kind", [Recogniser, SceneClassifier, AttributeReader, SelfSupervised, ImageText])
def test_judges_open(kind: type[Judge]) -> None:
    judge = kind.load(JUDGES / f"{kind.kind.replace(' ', '-')}.safetensors")
    assert judge.look(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).isfinite().all()


@pytest.mark.parametrize("style", ["plain", "watercolor", "pixel art"])
def test_the_shipped_recogniser_knows_people_it_never_saw(style: str) -> None:
    people, recogniser = portraits("tuning", 20, 64), Judges.load().recogniser
    probes = recogniser.embed(people.true_picture(style))
    rate = identification_rate(people.gallery(recogniser, Scene(style=style)), probes, people.labels)
    assert rate.share >= 0.85  # 0.05 by chance


def test_the_shipped_image_text_model_and_encoder_know_pictures_of_people_they_never_saw() -> None:
    scenes = [*STYLE_SCENES, *EDIT_SCENES]
    people, encoders = portraits("tuning", len(scenes), 64), Panel.load().encoders
    assert people.seeds is not None
    drawn = draw(people.seeds, [View.reference(np.random.RandomState(1))] * len(scenes), scenes, 64)
    texts = encoders.clip.embed_text([caption(scene) for scene in scenes])
    right = (encoders.clip.embed(drawn) @ texts.T).argmax(dim=1) == people.labels
    assert right.float().mean() >= 0.7  # 0.05 by chance
    shifted = drawn.roll((2, 2), dims=(2, 3)) * 0.9
    found = (encoders.dino.embed(shifted) @ encoders.dino.embed(drawn).T).argmax(dim=1) == people.labels
    assert found.float().mean() >= 0.9


def test_what_e4t_learnt_is_of_the_base_that_ships() -> None:
    booth = HyperDreamBooth.load()
    network = E4TNetwork.load(E4T_NETWORK, booth)
    assert booth.hypernetwork is not None
    faces = render([Person(seed) for seed in (15_000, 15_001)], [View.reference()] * 2, booth.base.picture_size)
    one, other = network(booth.hypernetwork.encoder(faces))
    assert one.isfinite().all() and (one - other).norm() > 0.1 * one.norm()


def test_what_ships_draws_the_right_people() -> None:
    """Eight people it never saw, by the hypernetwork alone, in the plain style; chance is one in eight."""
    booth, people, recogniser = HyperDreamBooth.load(), portraits("tuning", 8, 64), Judges.load().recogniser
    work = booth.personalizing(list(people.references), PersonalizeConfig(steps=0))
    for _ in work:
        pass
    drawn = booth.draw(work.identities, "a portrait of a [V] face", DrawConfig(seed=0))
    rate = identification_rate(people.gallery(recogniser, Scene()), recogniser.embed(drawn), people.labels)
    assert rate.share >= 0.5
    nobody = recogniser.embed(booth.draw([None] * 8, "a portrait of a [V] face", DrawConfig(seed=0)))
    assert identification_rate(people.gallery(recogniser, Scene()), nobody, people.labels).share < 0.5


def test_the_demo_picture_is_one_face_in_the_right_frame() -> None:
    picture = read_picture(DEMO_PHOTO)
    crop = crop_face(picture, 256)
    assert crop.found == 1 and torch.equal(crop.picture, picture)
