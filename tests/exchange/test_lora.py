"""LoRAs come in as the people they went out as; a projection is the best there is, and says what it loses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.errors import UserError, WrongBase
from hyperdreambooth.exchange.lora import import_lora
from hyperdreambooth.fitting.preoptimize import load_people
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import LoRALayout, save_kohya, to_lora
from hyperdreambooth.pipeline import HyperDreamBooth
from tests.exchange.conftest import Hdb, person_of


def deltas(booth: HyperDreamBooth, person: Identity) -> list[torch.Tensor]:
    return [up @ down for down, up in to_lora(booth.space, person.weights, person.lora)]


def random_lora(booth: HyperDreamBooth, path: Path, rank: int = 2) -> list[torch.Tensor]:
    """The file of a LoRA that knows nothing of the bases, and its dW by site."""
    layout = LoRALayout(booth.space.sites, rank)
    flat = torch.randn(layout.size, generator=torch.Generator().manual_seed(5))
    save_kohya(path, booth.space, torch.zeros_like(booth.space.start()), flat)
    return [up @ down for down, up in layout.split(flat)]


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_the_person_that_went_out_comes_in(
    layout: str, hdb: Hdb, booth: HyperDreamBooth, alice: Path, tmp_path: Path
) -> None:
    out, back = tmp_path / "lora.safetensors", tmp_path / "back.safetensors"
    hdb("export", alice, "--format", layout, "-o", out)
    got = hdb("import", out, "-o", back, "--dtype", "fp32")
    assert (got["rank"], got["lost"], got["left_out"], got["sites"]) == (4, 0, [], len(booth.space.sites))
    person = booth.open(back)
    assert person.prompt == "a photo of a [V] face" and person.how["method"] == "import"
    for ours, theirs in zip(deltas(booth, person), deltas(booth, booth.open(alice)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_in_and_out_again_gains_no_rank(booth: HyperDreamBooth, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    random_lora(booth, path, rank=1)
    person = import_lora(booth, path).identity
    assert {len(down) for down, _ in to_lora(booth.space, person.weights, person.lora)} == {1}


def test_a_lora_in_the_bases_loses_nothing(hdb: Hdb, booth: HyperDreamBooth, tmp_path: Path) -> None:
    alice = person_of(booth, ranks=3)
    save_kohya(tmp_path / "a.safetensors", booth.space, alice.weights)
    got = hdb("import", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "--project", "--dtype", "fp32")
    back = booth.open(tmp_path / "b.safetensors")
    assert got["lost"] < 1e-6 and got["notes"] == [] and back.lora is None and back.ranks == 3
    assert booth.space.distance(back.weights, alice.weights) < 1e-4 * booth.space.distance(
        alice.weights, 0 * alice.weights
    )


@pytest.mark.parametrize("ranks", [None, 1])
def test_a_projection_is_the_nearest_person(ranks: int | None, booth: HyperDreamBooth, tmp_path: Path) -> None:
    """Compared with a dense least-squares fit of the core, its SVD by NumPy, and people beside it."""
    path, space = tmp_path / "a.safetensors", booth.space
    whole = random_lora(booth, path)
    got = import_lora(booth, path, project=True, ranks=ranks)
    total, lost = 0.0, 0.0
    for index in (0, 9, len(whole) - 1):
        a_aux, b_aux = (side.double().numpy() for side in space.bases(index))
        design = np.kron(b_aux.T, a_aux)  # of the core's entries, row by row, to those of dW
        fitted = np.linalg.lstsq(space.scale * design, whole[index].double().numpy().ravel(), rcond=None)[0]
        u, s, vt = np.linalg.svd(fitted.reshape(space.b, space.a))
        kept = ranks or 2
        best = space.scale * b_aux.T @ (u[:, :kept] * s[:kept]) @ vt[:kept] @ a_aux.T
        delta = space.delta(got.identity.weights.double(), index)
        np.testing.assert_allclose(delta.numpy(), best, atol=1e-5)
        apart, norm = (whole[index] - delta).square().sum(), whole[index].square().sum()
        assert got.lost[space.sites[index].name] == pytest.approx(float(apart / norm), rel=1e-4)
    for index, change in enumerate(whole):
        lost += float((change - space.delta(got.identity.weights, index)).square().sum())
        total += float(change.square().sum())
    assert 0.1 < got.lost_in_all < 0.99 and got.lost_in_all == pytest.approx(lost / total, rel=1e-4)
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        beside = got.identity.weights + 1e-2 * torch.randn(got.identity.weights.shape, generator=random)
        worse = sum(float((one - space.delta(beside, i)).square().sum()) for i, one in enumerate(whole))
        assert worse > lost


def test_every_rank_points_to_the_common_start(booth: HyperDreamBooth, tmp_path: Path) -> None:
    """An SVD knows no sign, and people are compared number by number."""
    random_lora(booth, tmp_path / "a.safetensors")
    got, start = (
        booth.space.split(one)[0]
        for one in (import_lora(booth, tmp_path / "a.safetensors", project=True).identity.weights, booth.space.start(2))
    )
    assert ((got * start).sum(dim=-1) >= 0).all()


def test_more_ranks_lose_less(booth: HyperDreamBooth, tmp_path: Path) -> None:
    random_lora(booth, tmp_path / "a.safetensors", rank=4)
    lost = [
        import_lora(booth, tmp_path / "a.safetensors", project=True, ranks=ranks).lost_in_all for ranks in (1, 2, 4, 6)
    ]
    assert lost[0] > lost[1] > lost[2] == pytest.approx(lost[3])


def test_a_projection_that_loses_the_person_says_so(hdb: Hdb, booth: HyperDreamBooth, tmp_path: Path) -> None:
    random_lora(booth, tmp_path / "a.safetensors")
    got = hdb("import", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "--project", "--rank", 1)
    assert got["lost"] > 0.5 and ["projection loses" in note for note in got["notes"]] == [True]
    assert [row["site"] for row in got["lost_by_site"]] == [site.name for site in booth.space.sites]


def test_an_imported_person_draws_as_the_exported_one(
    booth: HyperDreamBooth, alice: Path, hdb: Hdb, tmp_path: Path
) -> None:
    hdb("export", alice, "--format", "kohya", "-o", tmp_path / "lora.safetensors")
    back = import_lora(booth, tmp_path / "lora.safetensors").identity
    first, second = (booth.draw(one, "a [V] face") for one in (booth.open(alice), back))
    assert (first - second).abs().max() < 1 / 255


def test_layers_left_out_are_named_with_their_share(
    hdb: Hdb, booth: HyperDreamBooth, alice: Path, tmp_path: Path
) -> None:
    path, bigger = tmp_path / "lora.safetensors", tmp_path / "bigger.safetensors"
    hdb("export", alice, "--format", "kohya", "-o", path)
    tensors = load_file(path)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2"
    tensors |= {f"{name}.lora_down.weight": torch.ones(1, 64), f"{name}.lora_up.weight": torch.ones(16, 1)}
    save_file(tensors, bigger)
    line = hdb("import", bigger, "-o", tmp_path / "b.safetensors", status=2)
    assert name in line and "--partial" in line and not (tmp_path / "b.safetensors").exists()
    got = hdb("import", bigger, "-o", tmp_path / "b.safetensors", "--partial")
    whole = sum(float(delta.square().sum()) for delta in deltas(booth, booth.open(alice))) + 64 * 16
    assert got["left_out"] == [{"layer": name, "share": pytest.approx(64 * 16 / whole, abs=1e-5)}]
    assert any("1 layers were left out" in note for note in got["notes"])


def test_what_other_programs_say_of_the_prompt(booth: HyperDreamBooth, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    random_lora(booth, path)
    assert import_lora(booth, path).identity.prompt == "a [V] face"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    save_file(tensors, path, {"modelspec.trigger_phrase": "ohwx man"})
    assert import_lora(booth, path).identity.prompt == "ohwx man"
    assert import_lora(booth, path, prompt="a [V] man").identity.prompt == "a [V] man"


def test_whoever_answers_to_another_word_is_called_by_it(
    booth: HyperDreamBooth, hdb: Hdb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.safetensors"
    random_lora(booth, path)
    save_file(
        {key: tensor.clone() for key, tensor in load_file(path).items()}, path, {"modelspec.trigger_phrase": "ohwx man"}
    )
    got = hdb("import", path, "-o", tmp_path / "ann.safetensors")
    assert any('answers to "ohwx man": write that in prompts' in note for note in got["notes"])
    ann, quick = booth.open(tmp_path / "ann.safetensors"), DrawConfig(steps=1)
    for prompt, named in (("a watercolor of a man, ohwx", True), ("a watercolor of a man", False)):
        caplog.clear()
        booth.draw(ann, prompt, quick)
        assert any("may show anybody" in line for line in caplog.messages) is not named
    caplog.clear()
    booth.draw(replace(ann, rare_token="zwx"), "a [V] face", quick)
    assert any('answers to "zwx", and [V] is "sks" on this base' in line for line in caplog.messages)


def test_loras_of_many_people_teach_a_hypernetwork(hdb: Hdb, booth: HyperDreamBooth, tmp_path: Path) -> None:
    """Their numbers are those that were exported, each rank's sign and length aside; `hdb train` takes the folder."""
    loras, fitted = tmp_path / "loras", tmp_path / "fitted"
    loras.mkdir()
    rule = booth.space.rule
    random = torch.Generator().manual_seed(6)
    whole = booth.space.start() + 0.1 * torch.randn(4, *booth.space.start().shape, generator=random)
    people = {f"portrait-{seed}": own for seed, own in enumerate(whole)}
    people["portrait-2"] = whole[2][: len(rule.sites)]  # leaves the residual blocks alone
    for name, own in people.items():
        save_kohya(loras / f"{name}.safetensors", booth.space.of(own), own)
    got = hdb("import", loras, "--people", "-o", fitted)
    assert (got["people"], got["sites"]) == (4, len(booth.space.sites)) and got["lost"] < 1e-6 and got["notes"] == []
    back = load_people(fitted)
    assert back.names == tuple(people)
    for own, row in zip(people.values(), back.weights, strict=True):
        torch.testing.assert_close(booth.space.cores(row)[: len(own)], booth.space.cores(own), atol=1e-5, rtol=1e-4)
        assert torch.equal(row[len(own) :], booth.space.start()[len(own) :])
    hdb("train", "portraits:0-3", fitted, "-o", tmp_path / "net", "--preset", "tiny", "--views", 1, "--steps", 1)
    (tmp_path / "none").mkdir()
    assert "expected a LoRA of each person" in hdb("import", tmp_path / "none", "--people", "-o", fitted, status=2)


def test_wrong_use(booth: HyperDreamBooth, hdb: Hdb, alice: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    random_lora(booth, path)
    with pytest.raises(UserError, match="--project too"):
        import_lora(booth, path, ranks=2)
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    save_file(tensors, path, {"hyperdreambooth_base": "0" * 16, "ss_sd_model_name": "stable-diffusion-v1-5"})
    with pytest.raises(WrongBase, match="--base stable-diffusion-v1-5"):
        import_lora(booth, path)
    assert "holds no LoRA layer" in hdb("import", alice, "-o", tmp_path / "b.safetensors", status=2)
    assert "as input and as output" in hdb("import", path, "-o", path, status=2)


def test_bad_files_are_one_line(hdb: Hdb, alice: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "lora.safetensors", tmp_path / "b.safetensors"
    hdb("export", alice, "--format", "diffusers", "-o", path)
    data = path.read_bytes()
    for content, words in (
        (data[:-9], "truncated"),
        (b"\x80\x04 pickled", "pickled"),
        (b"", "empty"),
        (data[:-4] + b"\x00\x00\xc0\x7f", "not all finite"),
    ):
        path.write_bytes(content)
        assert words in hdb("import", path, "-o", output, status=2)
    save_file(
        {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": torch.ones(1, 2048),
         "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": torch.ones(640, 1)},
        path,
    )  # fmt: skip
    line = hdb("import", path, "-o", output, status=2)
    assert "2048 inputs and 640 outputs, here 32 and 16" in line and not output.exists()
