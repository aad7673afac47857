from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from hyperdreambooth.errors import BadFile, UserError, WrongBase, WrongSpace
from hyperdreambooth.files import load_tensors, save_tensors
from hyperdreambooth.hypernetwork.encoder import EncoderConfig, FaceEncoder, build_encoder
from hyperdreambooth.hypernetwork.model import PRESETS, HyperNetwork, HyperNetworkConfig, build_hypernetwork
from hyperdreambooth.hypernetwork.training import TrainConfig, set_trained
from hyperdreambooth.lidb import LiDBSpace


def pictures(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def awake(network: HyperNetwork) -> HyperNetwork:
    """With a head large enough for rounds to matter."""
    nn.init.normal_(network.head.weight, std=0.1, generator=torch.Generator().manual_seed(2))
    return network.eval()


def test_training_begins_at_the_mean_person(world) -> None:
    network, people = world.network(), world.people(20)
    network.set_statistics(people.numbers)
    predicted = network.predict(pictures(4))
    assert predicted.shape == (4, len(world.space.sites), 1, world.space.width)
    spread = people.numbers.std(dim=0).mean()
    assert (predicted - people.numbers.mean(dim=0)).abs().mean() < 0.05 * spread


def test_theta_and_numbers_are_inverses(world) -> None:
    network, people = world.network(), world.people(20)
    network.set_statistics(people.numbers)
    torch.testing.assert_close(network.numbers(network.theta(people.numbers)), people.numbers)


def test_theta_of_the_people_measured_has_zero_mean_and_unit_spread_per_half_site(world) -> None:
    network, people = world.network(), world.people(40)
    network.set_statistics(people.numbers)
    theta = network.theta(people.numbers)
    torch.testing.assert_close(theta.mean(dim=0), torch.zeros_like(theta[0]), atol=1e-4, rtol=0)
    for half in world.space.split(theta.var(dim=0)[:, 0]):
        torch.testing.assert_close(half.mean(dim=-1), torch.ones(len(half)), atol=1e-3, rtol=1e-3)


def test_rounds_unroll_equation_3(world) -> None:
    """theta_k = theta_{k-1} + T(f, theta_{k-1}), written out with the network's parts, features computed once."""
    network, shown = awake(world.network()), pictures(2)
    face = network.project(network.encoder(shown))
    theta = torch.zeros(2, len(world.space.sites), world.space.width)
    for rounds in (1, 2, 3):
        read = torch.stack([theta[:, s] @ network.head.weight[s].T for s in range(theta.shape[1])], dim=1)
        tokens = network.position + network.gain * read + face[:, :1]  # the whole face in each
        sequence = network.decoder(torch.cat([face, tokens], dim=1))
        tokens = network.norm(sequence)[:, -theta.shape[1] :]
        theta = theta + torch.stack([tokens[:, s] @ network.head.weight[s] for s in range(theta.shape[1])], dim=1)
        torch.testing.assert_close(network(shown, rounds).squeeze(2), theta, atol=1e-4, rtol=1e-3)
    assert torch.equal(network(shown), network(shown, 3))


@pytest.mark.parametrize("independent", [True, False])
def test_a_site_moves_others_unless_they_are_independent(world, independent: bool) -> None:
    """Its numbers are read otherwise from the second round on: of the others, only those that look at it move."""
    config, shown, site = replace(PRESETS["tiny"], independent=independent), pictures(2), 3
    network = awake(build_hypernetwork(config, world.space, world.base.fingerprint))
    before = network(shown)  # (N, S, 1, a + b)
    with torch.no_grad():
        network.gain[site] += 5.0
    moved = (network(shown) - before).abs().amax(dim=(0, 2, 3)) > 0  # (S,)
    assert moved[site] and moved.sum() == (1 if independent else len(moved))
    features = network.encoder(shown)
    features[:, 1:] = features[:, 1:].flip(0)  # the other's patches, beside the own whole face that each token holds
    assert (network.decode(features) - network(shown)).abs().amax(dim=(2, 3)).min() > 1e-4  # all see the face


def test_independent_layers_have_the_same_parameters_but_for_the_positions(world, tmp_path: Path) -> None:
    config = replace(PRESETS["tiny"], independent=True)
    network, usual = awake(build_hypernetwork(config, world.space, world.base.fingerprint)), world.network()
    shapes = ({name: p.shape for name, p in one.named_parameters()} for one in (usual, network))
    assert next(shapes) == {**next(shapes), "position": usual.position.shape}
    path = tmp_path / "network.safetensors"
    network.save(path, torch.float32)
    loaded = HyperNetwork.load(path, world.space, world.base.fingerprint)
    assert loaded.config == config
    torch.testing.assert_close(loaded.predict(pictures(2)), network.predict(pictures(2)))
    network(pictures(2)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    usual.save(path)  # as before there were such: earlier files load, and begun trainings go on
    assert "independent" not in load_tensors(path)[1]["config"]


def test_gradients_reach_everything_through_all_rounds(world) -> None:
    network = awake(world.network()).train()
    network(pictures(2)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_one_person_is_the_batch_of_one(world) -> None:
    network, shown = awake(world.network()), pictures(3)
    together = network.predict(shown)
    alone = torch.cat([network.predict(one[None]) for one in shown])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_larger_pictures_are_shrunk(world) -> None:
    network = awake(world.network())
    large = functional.interpolate(pictures(2, 4), (64, 64), mode="bilinear")
    expected = network.predict(functional.avg_pool2d(large, 4))
    apart = (network.predict(large) - expected).norm()
    assert apart < 0.2 * (expected[0] - expected[1]).norm()


def test_a_saved_network_predicts_the_same(world, tmp_path: Path) -> None:
    network = awake(world.network())
    network.set_statistics(world.people(20).numbers)
    expected = network.predict(pictures(2))
    for dtype, tolerance in ((torch.float32, 0.0), (torch.float16, 0.01)):
        network.save(tmp_path / "network.safetensors", dtype, about={"card": "of a test"})
        loaded = HyperNetwork.load(tmp_path / "network.safetensors", world.space, world.base.fingerprint)
        torch.testing.assert_close(loaded.predict(pictures(2)), expected, atol=tolerance, rtol=tolerance)
        assert loaded.config == network.config
    assert load_tensors(tmp_path / "network.safetensors")[1]["card"] == "of a test"


def test_a_file_for_another_base_or_space_is_refused_by_name(world, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    world.network().save(path)
    with pytest.raises(WrongBase, match=world.base.name):
        HyperNetwork.load(path, world.space, "0123456789abcdef", "other")
    other = LiDBSpace(world.space.sites, world.space.a, world.space.b, seed=5)
    with pytest.raises(WrongSpace, match="seed 0, here 5"):
        HyperNetwork.load(path, other, world.base.fingerprint)


def test_a_file_that_is_no_sound_hypernetwork_is_refused(world, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_tensors(path, {"x": torch.zeros(1)})
    with pytest.raises(BadFile, match="no format"):
        HyperNetwork.load(path, world.space, world.base.fingerprint)
    network = world.network()
    with torch.no_grad():
        network.position[0, 0] = float("nan")
    network.save(path)
    with pytest.raises(BadFile, match="not finite"):
        HyperNetwork.load(path, world.space, world.base.fingerprint)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {**metadata, "config": "{}"})
    with pytest.raises(BadFile, match="damaged"):
        HyperNetwork.load(path, world.space, world.base.fingerprint)


def test_seed_decides_the_parameters_and_leaves_global_state_alone(world) -> None:
    before = torch.get_rng_state()
    one, same, other = world.network(1), world.network(1), world.network(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.position, same.position) and not torch.equal(one.position, other.position)


def test_an_encoder_trained_elsewhere_is_taken_over(world, tmp_path: Path) -> None:
    trained = FaceEncoder(PRESETS["tiny"].encoder)
    trained.save(tmp_path / "encoder.safetensors")
    network = world.network()
    network.encoder.load(tmp_path / "encoder.safetensors")
    torch.testing.assert_close(network.encoder(pictures(2)), trained(pictures(2)))
    with pytest.raises(UserError, match="other sizes"):
        FaceEncoder(EncoderConfig(picture_size=32, patch=4, width=32, depth=1, heads=2)).load(
            tmp_path / "encoder.safetensors"
        )


def test_features_see_where_things_are(world) -> None:
    shown = pictures(1)
    encoder = world.network().encoder
    assert (encoder(shown)[:, 0] - encoder(shown.flip(-1))[:, 0]).abs().max() > 1e-3
    patches = encoder(shown)[:, 1:].mean(dim=1) - encoder(shown.flip(-1))[:, 1:].mean(dim=1)
    assert patches.abs().max() > 1e-3


def test_the_first_feature_is_of_the_whole_face_and_of_unit_spread(world) -> None:
    shown, encoder = pictures(2), world.network().encoder
    features = encoder(shown)
    assert features.shape == (2, 1 + 16, 32)
    torch.testing.assert_close(features[:, 0].std(dim=1, unbiased=False), torch.ones(2), atol=1e-3, rtol=0)
    together = features[:, 1:].flatten(1) @ encoder.whole.weight.T + encoder.whole.bias  # each patch by itself
    torch.testing.assert_close(features[:, 0], functional.layer_norm(together, (32,)), atol=1e-5, rtol=1e-4)
    corner = shown.clone()
    corner[:, :, -4:, -4:] = 0.0
    assert (encoder(corner)[:, 0] - features[:, 0]).abs().max() > 1e-3


@pytest.fixture
def vit(tmp_path: Path) -> CLIPVisionModel:
    """A narrow vision transformer of CLIP's, in the folder `vit`."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14)).eval()
    vit.save_pretrained(tmp_path / "vit")
    return vit


def test_a_pretrained_encoder_is_frozen_and_not_saved(world, vit: CLIPVisionModel, tmp_path: Path) -> None:
    encoder = EncoderConfig(picture_size=28, pretrained=str(tmp_path / "vit"), pixel_mean=(0.4, 0.5, 0.6))
    shown = pictures(2, 28)
    expected = vit(pixel_values=(shown - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.5).last_hidden_state
    torch.testing.assert_close(build_encoder(encoder)(shown), expected)

    config = replace(PRESETS["tiny"], encoder=encoder)
    assert isinstance(config, HyperNetworkConfig)
    network = awake(build_hypernetwork(config, world.space, world.base.fingerprint))
    network.save(tmp_path / "network.safetensors", torch.float32)
    assert not [name for name in load_tensors(tmp_path / "network.safetensors")[0] if name.startswith("encoder.")]
    loaded = HyperNetwork.load(tmp_path / "network.safetensors", world.space, world.base.fingerprint)
    torch.testing.assert_close(loaded.predict(shown), network.predict(shown))
    assert not any(p.requires_grad for p in loaded.train().encoder.parameters())
    assert not loaded.encoder.training
    with pytest.raises(UserError, match="cannot open the pretrained encoder"):
        build_encoder(EncoderConfig(pretrained=str(tmp_path / "nowhere")))


def test_a_pretrained_encoder_may_learn_too_and_is_then_kept(world, vit: CLIPVisionModel, tmp_path: Path) -> None:
    encoder = EncoderConfig(picture_size=28, pretrained=str(tmp_path / "vit"), trained=True)
    config = replace(PRESETS["tiny"], encoder=encoder)
    network = awake(build_hypernetwork(config, world.space, world.base.fingerprint))
    set_trained(network, TrainConfig())
    shown = pictures(2, 28)
    network.train()(shown).square().sum().backward()
    grads = [p.grad for name, p in network.encoder.named_parameters() if "post_layernorm" not in name]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)  # CLIP's last norm is of its class alone
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter.add_(0.1)
    network.eval().save(tmp_path / "network.safetensors", torch.float32)
    loaded = HyperNetwork.load(tmp_path / "network.safetensors", world.space, world.base.fingerprint)
    torch.testing.assert_close(loaded.predict(shown), network.predict(shown))
    assert loaded.config.encoder.trained and "'trained'" not in str(PRESETS["vit-h"].values)
    set_trained(network, TrainConfig(freeze_encoder=True))
    assert not any(p.requires_grad for p in network.encoder.parameters())


def test_a_pickled_encoder_is_refused(vit: CLIPVisionModel, tmp_path: Path) -> None:
    (tmp_path / "vit" / "model.safetensors").unlink()
    torch.save(vit.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    with pytest.raises(UserError, match="only pytorch_model") as caught:
        build_encoder(EncoderConfig(picture_size=28, pretrained=str(tmp_path / "vit")))
    assert "a pickled file" in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot open the pretrained encoder") as caught:
        build_encoder(EncoderConfig(picture_size=28, pretrained=str(tmp_path / "vit")))
    assert "\n" not in str(caught.value)


def test_an_encoder_of_the_hub_is_of_the_revision_that_is_named(
    vit: CLIPVisionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, where v1 is this one and main holds a pickle alone."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs, snapshots = (tmp_path / "models--org--vit" / part for part in ("refs", "snapshots"))
    refs.mkdir(parents=True)
    shutil.copytree(tmp_path / "vit", snapshots / ("1" * 40))
    (snapshots / ("2" * 40)).mkdir()
    (snapshots / ("2" * 40) / "pytorch_model.bin").write_bytes(b"not read")
    (refs / "v1").write_text("1" * 40)
    (refs / "main").write_text("2" * 40)
    shown = pictures(2, 28)
    encoder = build_encoder(EncoderConfig(picture_size=28, pretrained="org/vit@v1"))
    torch.testing.assert_close(encoder(shown), vit(pixel_values=(shown - 0.5) / 0.5).last_hidden_state)
    for name, words in (("org/vit", "only pytorch_model"), ("org/vit@v2", "the hub cannot be reached")):
        with pytest.raises(UserError, match=words):
            build_encoder(EncoderConfig(picture_size=28, pretrained=name))
