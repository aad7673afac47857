"""Drawing: what a step of the sampler asks of whom, and that nothing else shows in a picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import HeunDiscreteScheduler
from torch import Tensor

from hyperdreambooth.base.model import Base
from hyperdreambooth.base.sampling import noise_source
from hyperdreambooth.drawing import DrawConfig, stack
from hyperdreambooth.errors import WorkError
from hyperdreambooth.lidb.linear import residual
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.progress import Progress
from tests.conftest import somebody

QUICK = DrawConfig(steps=3, guidance=3.0)


def test_drawing_equals_a_merged_model(booth: HyperDreamBooth) -> None:
    """A worn person and one merged into the weights are the same, the latter drawn by the base's own functions."""
    alice, prompt, base = somebody(booth, 1, ranks=2, lora_rank=1), "a watercolor of a [V] face", booth.base
    as_exported = replace(QUICK, seed=9, likeness=None)
    worn = booth.draw(alice, prompt, as_exported)
    nobody = booth.draw(None, prompt, as_exported)
    booth.adapters.merge(alice.weights, alice.lora)
    states, nothing = base.encode_prompts([prompt]), base.encode_prompts([""])
    noise = base.noise(1, generator := torch.Generator().manual_seed(9))
    latents = base.sample(states, nothing, noise, steps=3, guidance=3.0, generators=[generator])
    merged = base.decode(latents)
    booth.adapters.unmerge()
    assert worn.shape == (1, 3, 16, 16) and worn.min() >= 0 and worn.max() <= 1
    assert torch.allclose(worn, merged, atol=1e-4)
    assert not torch.allclose(worn, nobody, atol=1e-2)


@pytest.mark.parametrize(("guidance", "likeness"), [(3.0, 3.0), (4.0, 2.0), (1.0, 2.0)])
def test_likeness_pushes_away_from_nobody(booth: HyperDreamBooth, guidance: float, likeness: float) -> None:
    """Against the formula, written out with the person merged into the weights for the one answer that wears them."""
    alice, prompt, base = somebody(booth, 1, ranks=2, lora_rank=1), "a watercolor of a [V] face", booth.base
    ours = booth.draw(alice, prompt, replace(QUICK, seed=9, guidance=guidance, likeness=likeness))
    scheduler = type(base.scheduler).from_config(base.scheduler.config)
    scheduler.set_timesteps(3)
    latents = base.noise(1, generator := torch.Generator().manual_seed(9))
    with torch.no_grad():
        for t in scheduler.timesteps:
            nothing = base.predict(latents, t, base.encode_prompts([""]))
            nobody = base.predict(latents, t, base.encode_prompts([prompt]))
            booth.adapters.merge(alice.weights, alice.lora)
            person = base.predict(latents, t, base.encode_prompts([prompt]))
            booth.adapters.unmerge()
            output = nothing + guidance * (nobody - nothing) + likeness * (person - nobody)
            latents = scheduler.step(output, t, latents, return_dict=False, **noise_source(scheduler, [generator]))[0]
        assert torch.allclose(ours, base.decode(latents), atol=1e-4)
    assert not torch.allclose(ours, booth.draw(alice, prompt, replace(QUICK, seed=9, likeness=None)), atol=1e-2)


def test_who_was_only_predicted_is_pushed_further(booth: HyperDreamBooth) -> None:
    """Of both in one call each as alone with the number that is said of them; whoever asks for a number gets that."""
    predicted = replace(somebody(booth, 1), how={"method": "hyperdreambooth", "hypernetwork": "yes", "steps": 0})
    fitted = replace(somebody(booth, 2), how={"method": "hyperdreambooth", "hypernetwork": "yes", "steps": 40})
    both = booth.draw([predicted, fitted, None], "a [V] face", replace(QUICK, guidance=5.0))
    for row, (person, likeness) in enumerate([(predicted, 5.0), (fitted, 3.0), (None, None)]):
        alone = booth.draw(person, "a [V] face", replace(QUICK, guidance=5.0, likeness=likeness))
        assert torch.allclose(both[row], alone[0], atol=1e-5)
    assert QUICK.of(predicted) != QUICK.of(fitted)
    asked = replace(QUICK, likeness=2.0)
    assert asked.of(predicted) == asked.of(fitted) == asked
    assert QUICK.answers() == QUICK.of(fitted).answers()


@pytest.mark.parametrize("likeness", [2.0, None])
def test_a_picture_is_the_same_whatever_the_batch(booth: HyperDreamBooth, likeness: float | None) -> None:
    """Different people, ranks, full-space factors, prompts and noises in one batch: each as if it were alone."""
    people = [somebody(booth, 1, 1), None, somebody(booth, 2, 3, 2), somebody(booth, 3, 2, 1)]
    prompts = ["a [V] face", "a watercolor of a [V] face", "a [V] face in the snow", "a pencil sketch of a [V] face"]
    config = replace(QUICK, count=2, seed=7, likeness=likeness)
    together = booth.draw(people, prompts, config).unflatten(0, (4, 2))
    chunked = booth.draw(people, prompts, replace(config, batch=3)).unflatten(0, (4, 2))
    assert torch.allclose(together, chunked, atol=1e-4)
    for n in range(4):
        for k in range(2):
            alone = booth.draw(people[n], prompts[n], replace(config, count=1, seed=7 + k))
            assert torch.allclose(alone[0], together[n, k], atol=1e-4)
    apart = (together.flatten(0, 1).unsqueeze(0) - together.flatten(0, 1).unsqueeze(1)).abs().amax(dim=(2, 3, 4))
    assert (apart + torch.eye(8)).min() > 1e-2  # no two are alike


@pytest.mark.parametrize(("people", "worn"), [([1, 2], {2}), ([1, 1], set()), ([1, None], set()), ([2, 1, None], {2})])
def test_nobodys_answers_wear_nothing_and_one_person_is_merged(
    booth: HyperDreamBooth, people: list[int | None], worn: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that go through adapters: those of the people's answers; none of one person's, who is in the weights."""
    rows = set[int]()

    def counted(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        rows.add(len(x))
        return residual(x, down, up)

    monkeypatch.setattr("hyperdreambooth.lidb.linear.residual", counted)
    known = {1: somebody(booth, 1), 2: somebody(booth, 2), None: None}
    booth.draw([known[one] for one in people], ["a [V] face"] * len(people), replace(QUICK, guidance=5.0, likeness=3.0))
    assert rows == worn


@pytest.mark.parametrize("reason", ["half precision", "offloaded", "a large base"])
def test_when_one_person_is_not_merged(fresh_base: Base, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it would be lost in the weights, where these come and go, where a copy is too much: the same picture."""
    booth = HyperDreamBooth(fresh_base)
    alice, prompt, config = somebody(booth, 1, 2, 1), "a [V] face", replace(QUICK, guidance=5.0, likeness=3.0)
    merged = booth.draw(alice, prompt, config)
    rows = list[int]()
    monkeypatch.setattr(
        "hyperdreambooth.lidb.linear.residual", lambda x, *factors: (rows.append(len(x)), residual(x, *factors))[1]
    )
    booth.draw(alice, prompt, config)
    assert not rows
    if reason == "half precision":
        fresh_base.to(dtype=torch.bfloat16)
    elif reason == "offloaded":
        fresh_base.offload(torch.device("cpu"))
    else:
        monkeypatch.setattr("hyperdreambooth.drawing._MERGED", 1_000)
    worn = booth.draw(alice, prompt, config)
    assert rows
    assert (worn - merged).abs().mean() < (0.05 if reason == "half precision" else 1e-5)


def test_whoever_is_worn_elsewhere_is_in_no_picture(booth: HyperDreamBooth) -> None:
    alice, bob = somebody(booth, 1), somebody(booth, 2)
    config = replace(QUICK, guidance=5.0, likeness=3.0)
    plain = [booth.draw(one, "a [V] face", config) for one in (None, alice)]
    with booth.adapters.use(bob.weights):
        inside = [booth.draw(one, "a [V] face", config) for one in (None, alice)]
    for one, other in zip(plain, inside, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_pictures_that_are_no_numbers_are_not_drawn(booth: HyperDreamBooth, monkeypatch: pytest.MonkeyPatch) -> None:
    """As float16 makes them on some cards: they would be black, and nobody told."""
    nothing = torch.full((1, 3, 32, 32), torch.nan)
    monkeypatch.setattr(type(booth.base), "decode", lambda *_: nothing)
    with pytest.raises(WorkError, match="not finite in fp32, expected finite ones"):
        booth.draw(None, "a face", DrawConfig(steps=1))


def test_strength(booth: HyperDreamBooth) -> None:
    alice = somebody(booth, 1, 2, 1)
    prompt = "a [V] face"
    nobody = booth.draw(None, prompt, QUICK)
    assert torch.allclose(booth.draw(alice, prompt, replace(QUICK, strength=0.0)), nobody, atol=1e-5)
    half = replace(alice, weights=booth.space.strength(alice.weights, 0.5), lora=None)
    expected = booth.draw(half, prompt, QUICK)
    assert torch.allclose(
        booth.draw(replace(alice, lora=None), prompt, replace(QUICK, strength=0.5)), expected, atol=1e-5
    )


def test_every_answer_counts(booth: HyperDreamBooth) -> None:
    alice = [somebody(booth, 1)]
    assert DrawConfig(8, likeness=None).samples(alice, booth.base) == 400
    assert DrawConfig(8, guidance=1.0, likeness=None).samples(alice, booth.base) == 200
    assert DrawConfig(8, guidance=3.0, likeness=3.0).samples(alice, booth.base) == 400  # no dearer than guidance
    assert DrawConfig(8, guidance=3.0, likeness=2.0).samples(alice, booth.base) == 600
    assert DrawConfig(4, guidance=3.0, likeness=2.0).samples([*alice, None], booth.base) == 500  # nobody is like nobody


def test_samplers_that_ask_twice_a_step_are_counted_so(booth: HyperDreamBooth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(booth.base, "scheduler", HeunDiscreteScheduler(prediction_type="v_prediction"))
    asked, reports, predict = list[int](), list[Progress](), booth.base.predict

    def counted(noisy: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        asked.append(len(noisy))
        return predict(noisy, *rest)

    monkeypatch.setattr(booth.base, "predict", counted)
    config = DrawConfig(count=3, steps=4, batch=2, guidance=3.0, likeness=2.0)
    booth.draw(somebody(booth, 1), "a [V] face", config, reports.append)
    assert config.samples([somebody(booth, 1)], booth.base) == sum(asked) > 3 * 3 * 4
    passes = len(asked) // 2  # nobody's answers and the person's are asked for apart
    assert [report.done for report in reports] == list(range(1, passes + 1))
    assert {report.total for report in reports} == {passes}


def test_stack_pads_with_nothing(booth: HyperDreamBooth) -> None:
    weights, lora = stack([somebody(booth, 1, 1), somebody(booth, 2, 3)], booth.space)
    assert weights.shape[:3] == (2, len(booth.space.sites), 3) and lora is None
    assert not weights[0, :, 1:].any()
