"""People fitted in full space, mixed: no larger than one of them, and as near to the sum as their ranks let."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyperdreambooth.cli import run
from hyperdreambooth.identity import Dtype, Identity, average, combine, mix
from hyperdreambooth.lidb import LiDBSpace, LoRALayout
from hyperdreambooth.pipeline import HyperDreamBooth


def people(space: LiDBSpace, base: str, count: int, ranks: int = 4, worn: bool = False) -> list[Identity]:
    """Of full-space factors on the last third of the sites, and of LiDB numbers that change something if worn."""
    last = LiDBSpace(space.sites[-(len(space.sites) // 3) :], space.a, space.b)
    found = []
    for seed in range(count):
        random = torch.Generator().manual_seed(seed)
        lora = 0.2 * torch.randn(LoRALayout(last.sites, ranks).size, generator=random)
        lora = torch.nn.functional.pad(lora, (LoRALayout(space.sites, ranks).size - len(lora), 0))
        weights = space.start()
        weights[..., space.a :] += 0.5 * worn * torch.randn(len(space.sites), 1, space.b, generator=random)
        found.append(Identity(weights, space.info, base, "tiny", lora=lora, blocks=space.blocks))
    return found


def distance(first: Identity, second: Identity, space: LiDBSpace) -> float:
    """The Frobenius distance of two persons' dW of full-space factors, over the first's norm."""
    width, apart, norm = LoRALayout(space.sites, 1).size, 0.0, 0.0
    assert first.lora is not None and second.lora is not None
    one, other = (LoRALayout(space.sites, len(lora) // width).split(lora) for lora in (first.lora, second.lora))
    for (down, up), (down2, up2) in zip(one, other, strict=True):
        apart += float((up @ down - up2 @ down2).square().sum())
        norm += float((up @ down).square().sum())
    return (apart / norm) ** 0.5


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "int8"])
def test_mixed_people_take_no_more_room_than_one(booth: HyperDreamBooth, tmp_path: Path, dtype: Dtype) -> None:
    space, path = booth.space, tmp_path / "person.safetensors"
    three = people(space, booth.fingerprint, 3)
    size, stored = three[0].save(path, dtype), load_file(path)
    for mixed in (
        mix(three[0], three[1], 0.4, space),
        average(three, space),
        mix(average(three, space), three[0], 0.5, space),
    ):
        assert abs(mixed.save(path, dtype) - size) < 100  # what is said of how they were made
        assert {name: one.shape for name, one in load_file(path).items()} == {
            name: one.shape for name, one in stored.items()
        }
        assert mixed.numbers == three[0].numbers
        assert distance(mixed, booth.open(path), space) < {"fp32": 1e-6, "fp16": 1e-3, "int8": 0.02}[dtype]


def test_a_person_mixed_with_themself_is_the_same_person(booth: HyperDreamBooth) -> None:
    space, (alice, bob) = booth.space, people(booth.space, booth.fingerprint, 2)
    assert distance(alice, mix(alice, alice, 0.5, space), space) < 1e-5
    assert distance(alice, average([alice] * 5, space), space) < 1e-5
    for weight, like in ((0.0, alice), (1.0, bob)):
        assert distance(like, mix(alice, bob, weight, space), space) < 1e-5
    assert distance(alice, mix(alice, bob, 0.5, space), space) > 0.1


def test_of_several_ranks_the_most_stay_and_lidb_numbers_are_as_without(booth: HyperDreamBooth) -> None:
    space = booth.space
    (alice,), (_, bob) = (
        people(space, booth.fingerprint, 1, 2, worn=True),
        people(space, booth.fingerprint, 2, 3, worn=True),
    )
    mixed, width = combine([alice, bob], [0.7, 0.3], space), LoRALayout(space.sites, 1).size
    assert mixed.lora is not None and len(mixed.lora) == 3 * width
    assert torch.equal(mixed.weights, space.combine([alice.weights, bob.weights], [0.7, 0.3]))
    alone = combine([alice, replace(bob, lora=None)], [0.7, 0.3], space)
    assert torch.equal(alone.weights, mixed.weights) and alone.lora is not None and len(alone.lora) == 2 * width


def test_the_command_says_the_same(
    booth: HyperDreamBooth, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alice, bob = people(booth.space, booth.fingerprint, 2)
    files = [tmp_path / f"{name}.safetensors" for name in ("alice", "bob", "both")]
    size = alice.save(files[0])
    bob.save(files[1])
    arguments = ["mix", *files[:2], "-o", files[2], "--weight", 0.3, "--base", base_folder, "--json"]
    assert run([str(argument) for argument in arguments]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["numbers"] == alice.numbers and abs(said["bytes"] - size) < 100
    assert distance(mix(alice, bob, 0.3, booth.space), booth.open(files[2]), booth.space) < 2e-3
