"""People in weights of their own: what they replace, their file, and who is drawn beside them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.errors import BadIdentityFile, UserError, WorkError, WrongBase
from hyperdreambooth.identity import Identity
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.tuned import WORD, Tuned, rare_token_id, word_embeddings

QUICK = DrawConfig(steps=3, guidance=3.0)
PROMPT = "a watercolor of a [V] face"


def dreambooth_person(booth: HyperDreamBooth, seed: int = 1) -> Tuned:
    """All weights of the U-Net, moved enough to change a picture."""
    random = torch.Generator().manual_seed(seed)
    tensors = {
        f"unet.{name}": p.detach() + 0.05 * p.detach().abs().mean() * torch.randn(p.shape, generator=random)
        for name, p in booth.base.unet.named_parameters()
    }
    return Tuned(tensors, booth.fingerprint, booth.base.name)


def word_person(booth: HyperDreamBooth, seed: int = 2) -> Tuned:
    size = word_embeddings(booth.base).weight.shape[1]
    word = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return Tuned({WORD: word}, booth.fingerprint, booth.base.name)


@pytest.mark.parametrize("likeness", [None, 2.0])
def test_an_identity_that_is_merged_into_weights_draws_what_it_draws_worn(
    booth: HyperDreamBooth, likeness: float | None
) -> None:
    start = booth.space.start()
    weights = start + 0.5 * torch.randn(start.shape, generator=torch.Generator().manual_seed(3))
    booth.adapters.merge(weights)
    networks = {"unet": booth.base.unet, "text_encoder": booth.base.text_encoder}
    tensors = {
        f"{name}.{key}": p.detach().clone() for name, one in networks.items() for key, p in one.named_parameters()
    }
    booth.adapters.unmerge()
    config = replace(QUICK, likeness=likeness)
    worn = booth.draw(Identity(weights, booth.space.info, booth.fingerprint), PROMPT, config)
    assert torch.allclose(booth.draw(Tuned(tensors, booth.fingerprint), PROMPT, config), worn, atol=1e-3)
    assert (worn - booth.draw(None, PROMPT, config)).abs().max() > 0.05


def test_full_likeness_of_no_change_is_nobody(booth: HyperDreamBooth) -> None:
    same = Tuned({f"unet.{name}": p.detach() for name, p in booth.base.unet.named_parameters()}, booth.fingerprint)
    assert torch.allclose(booth.draw(same, PROMPT, QUICK), booth.draw(None, PROMPT, QUICK), atol=1e-4)
    strong = dreambooth_person(booth)
    weak = booth.draw(strong, PROMPT, replace(QUICK, strength=0.0))
    assert torch.allclose(weak, booth.draw(None, PROMPT, QUICK), atol=1e-4)


def test_whoever_is_drawn_beside_them_stays_who_they_are(booth: HyperDreamBooth) -> None:
    people = [dreambooth_person(booth), None, word_person(booth)]
    together = booth.draw(people, PROMPT, replace(QUICK, count=2))
    for number, person in enumerate(people):
        alone = booth.draw(person, PROMPT, replace(QUICK, count=2))
        assert torch.allclose(together[2 * number : 2 * number + 2], alone, atol=1e-4)
    assert (together[0] - together[2]).abs().max() > 0.02 and (together[4] - together[2]).abs().max() > 0.02


def test_a_word_changes_its_row_alone_and_shares_the_unet(booth: HyperDreamBooth) -> None:
    person = word_person(booth)
    own = person.on(booth.base)
    assert own.unet is booth.base.unet and own.text_encoder is not booth.base.text_encoder
    changed = (word_embeddings(own).weight != word_embeddings(booth.base).weight).any(dim=1).nonzero().flatten()
    assert changed.tolist() == [rare_token_id(booth.base)]


def test_a_file_comes_back_and_draws_the_same(booth: HyperDreamBooth, tmp_path: Path) -> None:
    for name, person in (("unet", dreambooth_person(booth)), ("word", word_person(booth))):
        size = person.save(tmp_path / name, "fp32")
        assert size == (tmp_path / name).stat().st_size
        again = booth.open_person(tmp_path / name)
        assert isinstance(again, Tuned) and again.numbers == person.numbers
        assert torch.equal(booth.draw(again, PROMPT, QUICK), booth.draw(person, PROMPT, QUICK))


def test_a_word_is_read_by_diffusers(booth: HyperDreamBooth, base_folder: Path, tmp_path: Path) -> None:
    person = word_person(booth)
    person.save(tmp_path / "alice.safetensors", "fp32")
    pipeline = StableDiffusionPipeline.from_pretrained(base_folder, safety_checker=None)
    pipeline.load_textual_inversion(tmp_path / "alice.safetensors", token="<alice>")
    row = pipeline.tokenizer.convert_tokens_to_ids("<alice>")
    assert torch.allclose(pipeline.text_encoder.get_input_embeddings().weight[row], person.tensors[WORD], atol=1e-6)


def test_what_is_wrong_is_said(booth: HyperDreamBooth, tmp_path: Path) -> None:
    person = word_person(booth)
    with pytest.raises(UserError, match="dtype 'int8' for whole weights"):
        person.save(tmp_path / "a", "int8")
    with pytest.raises(WorkError, match="not all finite"):
        Tuned({WORD: torch.tensor([1e9])}, booth.fingerprint).save(tmp_path / "a", "fp16")
    assert not list(tmp_path.iterdir())
    replace(person, base="0" * 16).save(tmp_path / "other")
    with pytest.raises(WrongBase, match="was made for base"):
        booth.open_person(tmp_path / "other")
    with pytest.raises(WrongBase, match="which this base has not"):
        Tuned({"unet.nothing": torch.zeros(2)}, booth.fingerprint).on(booth.base)
    with pytest.raises(WrongBase, match="word has shape"):
        Tuned({WORD: torch.zeros(2)}, booth.fingerprint).on(booth.base)
    Tuned({WORD: torch.tensor([torch.nan])}, booth.fingerprint)
    from safetensors.torch import save_file

    metadata = {"format": "hyperdreambooth-tuned-1", "how": "{}", "base": booth.fingerprint, "base_name": "tiny"}
    save_file({WORD: torch.tensor([torch.nan])}, tmp_path / "half", metadata)
    with pytest.raises(BadIdentityFile, match="holds no person"):
        booth.open_person(tmp_path / "half")
    whole = metadata | {"prompt": "a [V] face", "rare_token": "sks", "class_noun": "face"}
    save_file({WORD: torch.zeros(1)}, tmp_path / "odd", whole | {"how": "[1, 2]"})
    with pytest.raises(BadIdentityFile, match=r"holds no person .made how: \[1, 2\]"):
        booth.open_person(tmp_path / "odd")
    save_file({WORD: torch.tensor([torch.nan])}, tmp_path / "nan", whole)
    with pytest.raises(BadIdentityFile, match="not all finite"):
        booth.open_person(tmp_path / "nan")


def test_the_base_is_never_changed(booth: HyperDreamBooth) -> None:
    before = deepcopy(booth.base.unet.state_dict())
    booth.draw([dreambooth_person(booth), word_person(booth)], PROMPT, QUICK)
    assert all(torch.equal(before[name], tensor) for name, tensor in booth.base.unet.state_dict().items())
