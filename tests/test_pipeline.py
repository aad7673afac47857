"""The main job, against its parts done by hand: what is fitted, what is drawn, and who is drawn in a shared batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import hyperdreambooth
from hyperdreambooth.base.model import Base
from hyperdreambooth.drawing import DrawConfig, note_faults
from hyperdreambooth.errors import BadPicture, UserError, WrongBase, WrongSpace
from hyperdreambooth.faces import crop_face, face_masks, read_picture
from hyperdreambooth.fitting.finetune import PRESETS, finetune
from hyperdreambooth.hypernetwork import model as hypernetworks
from hyperdreambooth.lidb import LoRALayout
from hyperdreambooth.personalization import PHASES, PersonalizeConfig
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.progress import Progress
from tests.conftest import somebody

QUICK = DrawConfig(steps=3, guidance=3.0)


@pytest.fixture
def predicting(booth: HyperDreamBooth) -> Iterator[HyperDreamBooth]:
    """The same booth with a random hypernetwork that says something of everybody."""
    network = hypernetworks.build_hypernetwork(hypernetworks.PRESETS["tiny"], booth.space, booth.fingerprint)
    network.offset_mean += 0.1
    booth.hypernetwork = network.eval()
    yield booth
    booth.hypernetwork = None


def test_personalize_is_its_parts(predicting: HyperDreamBooth, portrait_file: Path) -> None:
    booth, base = predicting, predicting.base
    alice = booth.personalize(portrait_file, steps=3, noises=2, relax="lidb", rank=2, seed=5)
    face = crop_face(read_picture(portrait_file), base.picture_size).picture.unsqueeze(0)
    assert booth.hypernetwork is not None
    prediction = booth.hypernetwork.predict(face)
    config = PRESETS["lidb"].config
    objective = replace(config.objective, noises=2, seed=5)
    config = replace(config, rank=2, fit=replace(config.fit, steps=3), objective=objective)
    latents = base.encode_pictures(face)
    tuning = finetune(base, booth.adapters, latents, prediction, config, masks=face_masks(latents))
    list(tuning)
    assert torch.allclose(alice.weights, tuning.weights[0], atol=1e-6)
    before = len(booth.space.sites) - booth.space.way_up
    assert torch.equal(alice.weights[:, :1], prediction[0]) and alice.ranks == 3
    assert not alice.weights[:before, 1:].any() and alice.weights[before:, :, alice.space.a :].any()
    assert alice.blocks == booth.space.blocks > booth.space.way_up > 0
    assert alice.numbers == (before + 3 * booth.space.way_up) * booth.space.width
    assert (alice.base, alice.space, alice.prompt) == (booth.fingerprint, booth.space.info, "a [V] face")


def test_the_hypernetwork_alone(predicting: HyperDreamBooth, portrait_file: Path) -> None:
    work = predicting.personalizing([portrait_file], PersonalizeConfig(steps=0))
    list(work)
    assert predicting.hypernetwork is not None and work.predicted is not None
    assert torch.equal(work.identities[0].weights, predicting.hypernetwork.predict(work.faces)[0])
    assert work.identities[0] is work.predicted[0] and work.samples == 0
    assert work.identities[0].how["hypernetwork"] == "yes"


def test_without_a_hypernetwork(booth: HyperDreamBooth, portrait_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = booth.personalizing([portrait_file], PersonalizeConfig(steps=2, relax="lidb", rank=2))
    list(work)
    assert work.predicted is None and work.identities[0].ranks == 2
    assert [r.message for r in caplog.records if "no hypernetwork" in r.message] != []
    with pytest.raises(UserError, match="0 steps and no hypernetwork"):
        booth.personalizing([portrait_file], PersonalizeConfig(steps=0))


def test_progress_and_figures(predicting: HyperDreamBooth, portrait_file: Path) -> None:
    work = predicting.personalizing([portrait_file, portrait_file], PersonalizeConfig(steps=3, noises=2))
    reports = list(work)
    assert list(dict.fromkeys(report.phase for report in reports)) == list(PHASES) == list(work.seconds)
    assert [report.done for report in reports if report.phase == "fine-tune"] == [0, 1, 2, 3]
    assert all(seconds > 0 for seconds in work.seconds.values())
    assert work.samples == 2 * 3 * 2


def test_people_of_one_batch_are_strangers(predicting: HyperDreamBooth, portrait_file: Path) -> None:
    other = 1 - read_picture(portrait_file)
    config = PersonalizeConfig(steps=1)
    together = predicting.personalizing([portrait_file, other], config)
    alone = predicting.personalizing([other], config)
    list(together), list(alone)
    assert torch.allclose(together.identities[1].weights, alone.identities[0].weights, atol=1e-4)
    assert not torch.allclose(together.identities[0].weights, alone.identities[0].weights, atol=1e-3)


def test_several_photographs_of_one_person_are_one_person(predicting: HyperDreamBooth, portrait_file: Path) -> None:
    """The mean of the predictions in dW, fitted to all of them, in one batch with somebody of one photograph."""
    booth, base = predicting, predicting.base
    one, other = read_picture(portrait_file), 1 - read_picture(portrait_file)
    work = booth.personalizing([[one, other], one], PersonalizeConfig(steps=3, noises=2, rank=2, seed=5))
    list(work)
    alice, bob = work.identities
    assert work.views.shape[:2] == (2, 2) and torch.equal(work.faces, work.views[:, 0])
    assert booth.hypernetwork is not None and work.predicted is not None
    each = booth.hypernetwork.predict(torch.stack([work.views[0, 0], work.views[0, 1]]))
    mean = sum(booth.space.delta(person, 0) for person in each) / 2
    averaged = booth.space.delta(work.predicted[0].weights, 0)
    u, s, vt = torch.linalg.svd(mean.double())
    assert torch.allclose(averaged.double(), s[0] * u[:, :1] @ vt[:1], atol=1e-5)  # the nearest of one rank
    latents = base.encode_pictures(work.views[0]).unsqueeze(0)
    config = PersonalizeConfig(steps=3, noises=2, rank=2, seed=5).finetune_in(booth.space)
    tuning = finetune(base, booth.adapters, latents, work.predicted[0].weights[None], config, masks=face_masks(latents))
    list(tuning)
    assert torch.allclose(alice.weights, tuning.weights[0], atol=1e-4)
    assert alice.how["photographs"] == 2 and "photographs" not in bob.how
    alone = booth.hypernetwork.predict(work.faces[1:])[0]
    assert torch.allclose(work.predicted[1].weights, alone, atol=1e-6)  # nothing is averaged
    with pytest.raises(UserError, match="no photographs"):
        booth.personalize([])


def test_a_photo_in_any_form_is_the_same_person(booth: HyperDreamBooth, portrait_file: Path) -> None:
    with Image.open(portrait_file) as image:
        forms = [portrait_file, str(portrait_file), image, read_picture(portrait_file)]
        first, *others = [booth.personalize(photo, steps=1, noises=1) for photo in forms]
    assert all(torch.equal(first.weights, other.weights) and first.how == other.how for other in others)
    with pytest.raises(BadPicture, match=r"\(3, H, W\)"):
        booth.personalize(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("settings", [{"steps": -1}, {"noises": 0}, {"rank": 0}, {"relax": "loha"}])
def test_settings_without_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="expected"):
        PersonalizeConfig(**settings)  # type: ignore[arg-type]


def test_full_space_relaxation(booth: HyperDreamBooth, portrait_file: Path, tmp_path: Path) -> None:
    alice = booth.personalize(portrait_file, steps=2, noises=1, relax="lora", rank=2)
    assert alice.lora is not None and alice.lora.shape == (LoRALayout(booth.space.sites, 2).size,)
    alice.save(tmp_path / "alice.safetensors", "fp32")
    back = booth.open(tmp_path / "alice.safetensors")
    assert torch.equal(booth.draw(back, "a [V] face", QUICK), booth.draw(alice, "a [V] face", QUICK))


def test_several_people_fit_in_half_precision_as_in_full(fresh_base: Base) -> None:
    """Their predictions are worn beside the fresh factors, in another precision than these."""
    booth = HyperDreamBooth(fresh_base)
    latents = booth.base.encode_pictures(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    predicted = torch.stack([somebody(booth, seed).weights for seed in (1, 2)])

    def fitted() -> Tensor:
        tuning = finetune(booth.base, booth.adapters, latents, predicted, PRESETS["lora"].config)
        for _ in tuning:
            pass
        assert tuning.lora is not None
        return tuning.lora

    full = fitted()
    fresh_base.to(dtype=torch.bfloat16)
    half, start = fitted(), LoRALayout(booth.space.sites[-booth.space.blocks :], 4).start(0)
    moved = full[:, -len(start) :] - start
    assert (half - full).norm() < 0.5 * moved.norm()


def test_generate_gives_images_pair_by_pair(booth: HyperDreamBooth) -> None:
    alice, bob = somebody(booth, 1), somebody(booth, 2)
    reports: list[Progress] = []
    images = booth.generate([alice, bob], "a [V] face", count=2, seed=3, steps=3, progress=reports.append)
    drawn = booth.draw([alice, bob], ["a [V] face"] * 2, DrawConfig(count=2, seed=3, steps=3))
    assert [image.size for image in images] == [(16, 16)] * 4
    for image, picture in zip(images, drawn, strict=True):
        levels = torch.tensor(list(image.tobytes())).view(16, 16, 3).permute(2, 0, 1)
        assert torch.equal(levels, (picture * 255).round().long())
    assert [(r.phase, r.done, r.total) for r in reports] == [("draw", n, 3) for n in (1, 2, 3)]


def test_nobody_is_made_or_drawn_over_a_merged_person(booth: HyperDreamBooth, portrait_file: Path) -> None:
    alice = somebody(booth, 1)
    work = booth.personalizing([portrait_file], PersonalizeConfig(steps=1))
    booth.adapters.merge(alice.weights)
    try:
        for person in (None, alice):
            with pytest.raises(UserError, match="merged"):
                booth.draw(person, "a [V] face", QUICK)
        with pytest.raises(UserError, match="merged"):
            booth.personalize(portrait_file, steps=1)
        with pytest.raises(UserError, match="merged"):
            list(work)
    finally:
        booth.adapters.unmerge()


def test_spent_adapters_and_no_photographs(booth: HyperDreamBooth, fresh_base: Base, portrait_file: Path) -> None:
    with pytest.raises(UserError, match="no photographs"):
        booth.personalizing([])
    spent = HyperDreamBooth(fresh_base)
    spent.adapters.eject()
    with pytest.raises(UserError, match="ejected"):
        spent.draw(None, "a face", QUICK)
    with pytest.raises(UserError, match="ejected"):
        spent.personalize(portrait_file)


def test_the_fingerprint_is_computed_once(
    booth: HyperDreamBooth, portrait_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperdreambooth.base.model.fingerprint_of", lambda *_: "anew")
    monkeypatch.setattr(Base, "fingerprint", property(lambda _: "anew"))
    assert booth.personalize(portrait_file, steps=1, noises=1).base == booth.fingerprint != "anew"


def test_the_rank_is_the_presets_unless_given(booth: HyperDreamBooth) -> None:
    space = booth.space
    configs = [PersonalizeConfig(relax=relax).finetune_in(space) for relax in ("lidb", "lora", None)]  # type: ignore[arg-type]
    assert [config.rank for config in configs] == [PRESETS["lidb"].config.rank_in(space), 4, 4]
    assert configs[2] == configs[1]  # a base this small has room for full space
    assert PersonalizeConfig(relax="lora", rank=2).finetune_in(space).rank == 2


@pytest.mark.parametrize(
    "settings", [{"strength": float("nan")}, {"guidance": float("inf")}, {"likeness": float("nan")}]
)
def test_drawing_takes_finite_numbers(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="finite"):
        DrawConfig(**settings)  # type: ignore[arg-type]


def test_prompts_without_the_person_and_too_long_ones_are_noted(
    booth: HyperDreamBooth, caplog: pytest.LogCaptureFixture
) -> None:
    rare, face = booth.base.rare_token, "a [v] portrait"
    longer = f"{face} {'in ' * booth.base.tokenizer.model_max_length}"
    for prompt, somebody_is_meant, words in (
        (face, True, None),
        (f"a {rare} portrait", True, None),
        ("a portrait", False, None),
        ("a portrait", True, 'has no "[V]"'),
        (longer, True, "its end is not read"),
    ):
        caplog.clear()
        note_faults(booth.base, prompt, somebody_is_meant)
        notes = [record.message for record in caplog.records if "never saw" not in record.message]
        assert (words is None and not notes) or (words is not None and [words in note for note in notes] == [True])
    room = booth.base.tokenizer.model_max_length - len(booth.base.tokenizer(f"a {rare} portrait").input_ids)
    caplog.clear()
    note_faults(booth.base, f"{face} {'in ' * room}".strip())
    assert not [record for record in caplog.records if "not read" in record.message]  # just fits


def test_what_the_base_seldom_draws_is_noted(
    booth: HyperDreamBooth, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for prompt, noted in (
        ("a [V] face wearing A Hat", '"wearing a hat"'),
        ("a smiling [V] face", '"smiling"'),
        ("a", ""),
    ):
        caplog.clear()
        monkeypatch.setattr(booth.base, "card", replace(booth.base.card, seldom="wearing a hat, smiling"))
        note_faults(booth.base, prompt)
        said = [record.message for record in caplog.records if "seldom draws" in record.message]
        assert len(said) == bool(noted) and all(noted in line for line in said)
        monkeypatch.undo()
        caplog.clear()
        note_faults(booth.base, prompt)
        assert "seldom draws" not in caplog.text


def test_people_and_prompts_that_do_not_pair(booth: HyperDreamBooth) -> None:
    alice = somebody(booth, 1)
    for people, prompts in (([alice] * 2, ["a", "b", "c"]), ([], "a"), (alice, [])):
        with pytest.raises(UserError, match="as many of each, or one"):
            booth.draw(people, prompts, QUICK)


def test_people_of_elsewhere_are_refused(booth: HyperDreamBooth) -> None:
    alice = somebody(booth, 1)
    with pytest.raises(WrongBase, match="was made for base"):
        booth.draw(replace(alice, base="0" * 16), "a [V] face", QUICK)
    with pytest.raises(WrongSpace):
        booth.draw(replace(alice, space=replace(alice.space, seed=9)), "a [V] face", QUICK)


def test_unknown_words_are_named_once(booth: HyperDreamBooth, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        booth.draw(somebody(booth, 1), ["a [V] face on a zebra"] * 2, QUICK)
    assert [record.message.count("zebra") for record in caplog.records] == [2]  # the word, and the prompt it stands in


def test_load(base_folder: Path, tmp_path: Path, portrait_file: Path) -> None:
    booth = HyperDreamBooth.load(base_folder, device="cpu")
    assert booth.hypernetwork is None  # the embedded one is for another base
    tiny = hypernetworks.PRESETS["tiny"]
    network = hypernetworks.build_hypernetwork(tiny, booth.space, booth.fingerprint)
    network.save(tmp_path / "hypernetwork.safetensors", torch.float32)
    for path in (tmp_path, tmp_path / "hypernetwork.safetensors"):
        again = HyperDreamBooth.load(base_folder, device="cpu", hypernetwork=path)
        assert again.hypernetwork is not None
        picture: Tensor = read_picture(portrait_file).unsqueeze(0)
        assert torch.equal(again.hypernetwork.predict(picture), network.eval().predict(picture))
    hypernetworks.build_hypernetwork(tiny, booth.space, "0" * 16).save(tmp_path / "other.safetensors")
    with pytest.raises(WrongBase):
        HyperDreamBooth.load(base_folder, device="cpu", hypernetwork=tmp_path / "other.safetensors")


def test_public_names() -> None:
    for name in hyperdreambooth.__all__:
        assert getattr(hyperdreambooth, name).__name__ == name
    assert hyperdreambooth.HyperDreamBooth is HyperDreamBooth
    with pytest.raises(AttributeError, match="nothing"):
        _ = hyperdreambooth.nothing
