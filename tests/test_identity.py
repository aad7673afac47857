"""Identity files: sizes, round trips, every kind of bad file told apart by name, arithmetic in dW."""

import json
import pickle
import resource
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hyperdreambooth.cli import run
from hyperdreambooth.errors import BadIdentityFile, DiskFull, NewerFormat, UserError, WorkError, WrongBase, WrongSpace
from hyperdreambooth.identity import Dtype, Identity, average, combine, mix, strength
from hyperdreambooth.lidb import LiDBSpace, LoRALayout, Site

SITES = (Site("unet.wide", "unet", "wide", 12, 9), Site("unet.tall", "unet", "tall", 10, 14))
BASE = "9f2c0000aaaabbbb"


@pytest.fixture
def space() -> LiDBSpace:
    return LiDBSpace(SITES, a=5, b=4, seed=2, scale=0.5)


def person(space: LiDBSpace, ranks: int = 2, seed: int = 0, lora_rank: int = 0) -> Identity:
    generator = torch.Generator().manual_seed(seed)
    lora = torch.randn(LoRALayout(space.sites, lora_rank).size, generator=generator) if lora_rank else None
    weights = torch.randn(len(space.sites), ranks, space.width, generator=generator)
    how = {"method": "hyperdreambooth", "steps": 40, "seconds": 4.5}
    return Identity(weights, space.info, BASE, "embedded", how=how, lora=lora)


def rewrite(path: Path, **metadata: str) -> None:
    """Save a file's tensors again with some of its metadata changed."""
    with safe_open(path, "pt") as file:
        old = dict(file.metadata())
    save_file(load_file(path), path, old | metadata)


def lora_delta(identity: Identity, index: int) -> torch.Tensor:
    assert identity.lora is not None
    down, up = LoRALayout(SITES, identity.lora.numel() // 45).split(identity.lora)[index]
    return up @ down


@pytest.mark.parametrize(("dtype", "raw"), [("fp32", 115_200), ("fp16", 57_600), ("int8", 28_800)])
def test_stable_diffusion_file_sizes(tmp_path: Path, dtype: str, raw: int) -> None:
    sites = tuple(Site(f"unet.{i}.to_q", "unet", f"{i}.to_q", 320, 320) for i in range(192))
    stable_diffusion = LiDBSpace(sites, a=100, b=50)
    how = {"method": "hyperdreambooth", "hypernetwork": "0123456789abcdef", "relax": "lidb", "steps": 40, "noises": 2,
           "learning rate": 0.01, "seed": 0, "seconds": 4.51, "samples": 80}  # fmt: skip
    one = replace(
        person(stable_diffusion, ranks=1),
        base="0" * 64,
        base_name="stable-diffusion-v1-5/stable-diffusion-v1-5",
        how=how,
    )
    assert raw < one.save(tmp_path / "one.safetensors", dtype) <= raw + 3_000
    if dtype == "int8":
        four = replace(one, weights=one.weights.repeat(1, 4, 1), how=how | {"note": "x" * 300})
        assert four.save(tmp_path / "four.safetensors", dtype) <= 120_000


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("fp16", 1e-3), ("int8", 0.5 / 127 + 5e-4)])
@pytest.mark.parametrize("lora_rank", [0, 3])
def test_round_trip(space: LiDBSpace, tmp_path: Path, dtype: str, tolerance: float, lora_rank: int) -> None:
    alice = replace(person(space, lora_rank=lora_rank), prompt="a [V] fäce", rare_token="ohwx")
    size = alice.save(tmp_path / "alice.safetensors", dtype)
    assert size == (tmp_path / "alice.safetensors").stat().st_size
    back = Identity.open(tmp_path / "alice.safetensors", space=space, base=BASE)
    for half, other in zip(space.split(back.weights), space.split(alice.weights), strict=True):
        assert half.dtype == torch.float32
        assert ((half - other).abs() <= tolerance * other.abs().amax(-1, keepdim=True)).all()
    if alice.lora is not None and back.lora is not None:
        assert torch.allclose(back.lora, alice.lora, rtol=0, atol=tolerance * float(alice.lora.abs().max()))
    assert (back.lora is None) == (alice.lora is None)
    assert replace(back, weights=alice.weights, lora=alice.lora).__dict__ == alice.__dict__


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("fp16", 1e-3), ("int8", 0.5 / 127 + 5e-4)])
def test_full_space_factors_of_the_last_sites_alone(
    space: LiDBSpace, tmp_path: Path, dtype: Dtype, tolerance: float
) -> None:
    """What is zero before them is not in the file; in int8, 64 numbers share a scale. Older libraries refuse it."""
    alice, path = person(space, lora_rank=4), tmp_path / "alice.safetensors"
    assert alice.lora is not None
    elsewhere = LoRALayout(SITES[:1], 4).size
    lora = alice.lora.clone()
    lora[:elsewhere] = 0
    half = replace(alice, lora=lora)
    assert alice.numbers - half.numbers == elsewhere == 84
    half.save(path, dtype)
    stored = load_file(path)
    assert stored["lora"].numel() == lora.numel() - elsewhere == 96
    assert dtype != "int8" or (stored["lora"].dtype == torch.int8 and stored["lora_scales"].shape == (2,))
    back = Identity.open(path, space=space).lora
    assert back is not None and back.shape == lora.shape
    most = torch.cat([part.abs().amax().expand(len(part)) for part in lora[elsewhere:].split(64)])
    assert ((back - lora)[elsewhere:].abs() <= tolerance * most).all() and not back[:elsewhere].any()
    with safe_open(path, "pt") as file:
        assert file.metadata()["hyperdreambooth"] == "2"
    rewrite(path, lora_zeros="1" + "0" * 30)
    with pytest.raises(BadIdentityFile, match="damaged"):
        Identity.open(path)


def test_int8_scales_stand_for_one_rank_and_half_each(space: LiDBSpace, tmp_path: Path) -> None:
    """Halves of very different size, one of them zero, keep their own precision."""
    alice = person(space)
    alice.weights[0, 1, :5] *= 1e-3
    alice.weights[1, 0, 5:] = 0
    alice.save(tmp_path / "alice.safetensors", "int8")
    back = Identity.open(tmp_path / "alice.safetensors").weights
    assert torch.allclose(back[0, 1, :5], alice.weights[0, 1, :5], atol=2e-5)
    assert not back[1, 0, 5:].any()
    tensors = load_file(tmp_path / "alice.safetensors")
    assert tensors["scales"].shape == (2, 2, 2)
    assert tensors["lidb"][..., :5].abs().amax(-1).eq(127).all()  # the whole range is used


def test_bad_files_are_told_apart(space: LiDBSpace, tmp_path: Path) -> None:
    sound = tmp_path / "alice.safetensors"
    person(space).save(sound)
    data = sound.read_bytes()

    def refused(content: bytes, match: str) -> None:
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(content)
        with pytest.raises(BadIdentityFile, match=match) as caught:
            Identity.open(bad, space=space, base=BASE)
        assert type(caught.value) is BadIdentityFile
        assert "\n" not in str(caught.value)
        assert "bad.safetensors" in str(caught.value)

    refused(data[: len(data) - 7], "truncated")
    refused(data[:20], "truncated")
    refused(b"", "empty")
    refused(b"hello, this is no identity file", "not a safetensors file")
    refused(pickle.dumps({"lidb": [1.0]}), "pickled")
    values = load_file(sound)["lidb"].flatten()
    values[3] = float("nan")
    refused(data[: -values.numel() * 2] + struct.pack(f"<{values.numel()}e", *values.tolist()), "not all finite")
    with pytest.raises(BadIdentityFile, match="nobody"):
        Identity.open(tmp_path / "nobody.safetensors")


def test_foreign_and_damaged_safetensors(space: LiDBSpace, tmp_path: Path) -> None:
    path = tmp_path / "alice.safetensors"
    save_file({"lidb": torch.zeros(2, 1, 9)}, path, {"format": "pt"})
    with pytest.raises(BadIdentityFile, match="something else"):
        Identity.open(path)
    person(space).save(path, "int8")
    rewrite(path)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"lidb": tensors["lidb"]}, path, metadata)
    with pytest.raises(BadIdentityFile, match="scales"):
        Identity.open(path)


SPACE = {"a": 5, "b": 4, "seed": 2, "scale": 0.5, "basis_version": 1, "check": "", "digest": ""}
HUGE = ("-5", "3000000000", "1" + "0" * 30, "9" * 5000, "2.5", "many", "")


@pytest.mark.parametrize(
    "damage",
    [
        *({"space": text} for text in ("{}", "oh", "[1, 2]", "7", "null", json.dumps(SPACE | {"more": 1}))),
        *({"space": json.dumps(SPACE | {"a": a, "b": 9 - a})} for a in (-3, 0, 9, 12, 5.0)),
        *({"space": json.dumps(SPACE | sizes)} for sizes in ({"a": "5"}, {"a": None}, {"b": [4]}, {"a": 3e9, "b": 1})),
        *({"how": text} for text in ("[", "[1, 2]", '"x"', "7", "null", '[["steps", 0]]', "[" * 100_000)),
        *({"ranks": text} for text in ("7", "0", *HUGE)),
        *({"lora_zeros": text} for text in HUGE),
    ],
    ids=lambda damage: str(damage)[:50],
)
@pytest.mark.parametrize("blocks", [0, 1])
def test_damaged_metadata(
    space: LiDBSpace, tmp_path: Path, damage: dict[str, str], blocks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear line, and no room made for numbers that a file only speaks of, be they of one part or of two."""
    path = tmp_path / "alice.safetensors"
    replace(person(space, lora_rank=4), blocks=blocks).save(path)
    Identity.open(path)
    rewrite(path, **damage)
    if blocks and damage == {"ranks": "7"}:  # of which the last five change nothing
        assert Identity.open(path).ranks == 7
        return
    with pytest.raises(BadIdentityFile, match="damaged"):
        Identity.open(path)
    assert run(["inspect", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "alice.safetensors is damaged" in err and len(err) < 400
    assert "alloc" not in err


@pytest.mark.parametrize("stated", ["9" * 5000, "-1", "four", ""])
def test_a_format_that_is_none(space: LiDBSpace, tmp_path: Path, stated: str) -> None:
    path = tmp_path / "alice.safetensors"
    person(space).save(path)
    rewrite(path, hyperdreambooth=stated)
    with pytest.raises(BadIdentityFile, match="something else") as caught:
        Identity.open(path)
    assert type(caught.value) is BadIdentityFile and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "tensors",
    [
        {"lidb": torch.zeros(())},
        {"lidb": torch.zeros(0, 2, 9)},
        {"lidb": torch.zeros(2, 9)},
        {"lidb": torch.zeros(1, 0, 9), "blocks": torch.zeros(1, 0, 9), "ranks": torch.tensor(0)},
        {"lidb": torch.zeros(0, 2, 9), "blocks": torch.zeros(1, 2, 9)},
        {"lidb": torch.zeros(2, 2, 9).to(torch.int8), "scales": torch.ones(())},
        {"lora": torch.zeros(())},
        {"lora": torch.zeros(2, 90)},
        {"lora": torch.zeros(180).to(torch.int8), "lora_scales": torch.ones(2)},
    ],
    ids=lambda tensors: str({name: tuple(tensor.shape) for name, tensor in tensors.items()}),
)
def test_damaged_shapes(space: LiDBSpace, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "alice.safetensors"
    person(space).save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    ranks = {"ranks": "0"} if "ranks" in tensors else {}
    save_file(load_file(path) | tensors, path, metadata | ranks)
    with pytest.raises(BadIdentityFile, match="damaged"):
        Identity.open(path)


def test_zeros_of_any_person_are_no_damage(space: LiDBSpace, tmp_path: Path) -> None:
    """One number behind a hundred thousand zeros, and ranks that change nothing beside full-space factors."""
    path, alice = tmp_path / "alice.safetensors", person(space, ranks=3)
    alice.weights[..., 5:] = 0
    lora = torch.zeros(45 * 3000)
    lora[-1] = 1
    replace(alice, lora=lora).save(path)
    back = Identity.open(path, space=space)
    assert back.lora is not None and torch.equal(back.lora, lora) and back.ranks == 3


@pytest.mark.parametrize("numbers", [0, 1, 46, 777])
def test_lora_of_no_whole_rank_is_refused(space: LiDBSpace, tmp_path: Path, numbers: int) -> None:
    path = tmp_path / "alice.safetensors"
    replace(person(space), lora=torch.ones(numbers)).save(path)
    with pytest.raises(BadIdentityFile, match=rf"LoRA factors of shape \({numbers},\)\), expected r \* 45 numbers"):
        Identity.open(path, space=space)


def test_numbers_of_other_sites_are_refused(space: LiDBSpace, tmp_path: Path) -> None:
    path, alice = tmp_path / "alice.safetensors", person(space)
    for weights in (alice.weights[:1], alice.weights.repeat(2, 1, 1), alice.weights[:, :0]):
        replace(alice, weights=weights).save(path)
        with pytest.raises(BadIdentityFile, match="expected 2 sites"):
            Identity.open(path, space=space)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_who_was_fitted_in_full_space_alone_keeps_no_other_numbers(
    space: LiDBSpace, tmp_path: Path, dtype: Dtype
) -> None:
    both, alone = (tmp_path / f"{name}.safetensors" for name in ("both", "alone"))
    start = person(space, ranks=1, lora_rank=3)
    unworn = replace(start, weights=space.rule.start())
    saved, whole = unworn.save(alone, dtype), start.save(both, dtype)
    assert "lidb" not in load_file(alone) and "lidb" in load_file(both) and saved < whole
    assert unworn.numbers == (unworn.lora if unworn.lora is not None else torch.empty(0)).numel()
    back = Identity.open(alone, space=space, base=BASE)
    assert (back.sites, back.ranks, back.blocks) == (2, 1, 0) and not space.split(back.weights)[1].any()
    with safe_open(alone, "pt") as file:
        assert file.metadata()["hyperdreambooth"] == "3"
    wide = json.dumps(SPACE | {"a": 10**9})
    wrongs = ({"sites": "9"}, {"blocks": "2"}, {"sites": "2.5"}, {"sites": "1000000000"}, {"ranks": "0"})
    for wrong in (*wrongs, {"ranks": "1000000000"}, {"space": wide}):
        rewrite(alone, **{"sites": "2", "blocks": "0", "ranks": "1"} | wrong)
        with pytest.raises(BadIdentityFile, match="damaged"):
            Identity.open(alone, space=space)


def test_newer_format(space: LiDBSpace, tmp_path: Path) -> None:
    path = tmp_path / "alice.safetensors"
    person(space).save(path)
    rewrite(path, hyperdreambooth="5", space="unknown here")
    with pytest.raises(NewerFormat, match=r"format 5.*newer hyperdreambooth"):
        Identity.open(path)


def test_wrong_base_names_both(space: LiDBSpace, tmp_path: Path) -> None:
    path = tmp_path / "alice.safetensors"
    replace(person(space), base_name="stable-diffusion-v1-5").save(path)
    with pytest.raises(
        WrongBase, match=r"stable-diffusion-v1-5.*9f2c.*\"embedded\".*41aa.*--base stable-diffusion-v1-5"
    ):
        Identity.open(path, space=space, base="41aa00000000", base_name="embedded")
    assert Identity.open(path).base == BASE


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (LiDBSpace(SITES, a=4, b=4, seed=2, scale=0.5), "a 5, here 4"),
        (LiDBSpace(SITES, a=5, b=4, seed=3, scale=0.5), "seed 2, here 3; check"),
        (LiDBSpace(SITES, a=5, b=4, seed=2, scale=1.0), r"scale 0\.5, here 1\.0"),
        (LiDBSpace(SITES[::-1], a=5, b=4, seed=2, scale=0.5), "digest"),
    ],
)
def test_wrong_space_names_what_differs(space: LiDBSpace, tmp_path: Path, other: LiDBSpace, named: str) -> None:
    path = tmp_path / "alice.safetensors"
    person(space).save(path)
    with pytest.raises(WrongSpace, match=named):
        Identity.open(path, space=other, base=BASE)


def test_what_cannot_be_saved_is_refused_and_the_old_file_stays(space: LiDBSpace, tmp_path: Path) -> None:
    path = tmp_path / "alice.safetensors"
    alice = person(space)
    alice.save(path)
    before = path.read_bytes()
    with pytest.raises(WorkError, match="finite in int8"):
        replace(alice, weights=alice.weights * float("nan")).save(path, "int8")
    with pytest.raises(WorkError, match="finite in fp16"):
        replace(alice, weights=alice.weights * 1e6).save(path, "fp16")
    with pytest.raises(UserError, match="1400"):
        replace(alice, prompt="a [V] face " * 200).save(path)
    alice.check_description()
    with pytest.raises(UserError, match="1400"):
        Identity(space.start(), space.info, BASE, prompt="a [V] face " * 200).check_description()
    with pytest.raises(UserError, match="fp8"):
        alice.save(path, "fp8")  # type: ignore[arg-type]
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_old_file(space: LiDBSpace, tmp_path: Path) -> None:
    path = tmp_path / "alice.safetensors"
    alice = person(space)
    alice.save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        with pytest.raises(DiskFull):
            replace(alice, prompt="a photo of a [V] face").save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_mixing_acts_on_delta(space: LiDBSpace) -> None:
    alice, bob = person(space, 1), person(space, 2, seed=1)
    mixed = combine([alice, bob], [0.7, 0.3], space, ranks=3)
    assert mixed.weights.shape == (2, 3, 9)
    for index in range(2):
        expected = 0.7 * space.delta(alice.weights, index) + 0.3 * space.delta(bob.weights, index)
        assert torch.allclose(space.delta(mixed.weights, index), expected, atol=1e-6)
    assert mix(alice, bob, 0.3, space).ranks == 2
    halves = average([alice, alice], space)
    assert space.distance(halves.weights, alice.weights) < 1e-5
    assert mixed.numbers == 2 * 3 * 9
    for amount in (float("nan"), float("inf"), 1e39, -1e31):
        with pytest.raises(UserError, match="expected finite numbers"):
            mix(alice, bob, amount, space)


def test_strength_scales_delta(space: LiDBSpace) -> None:
    alice = person(space, lora_rank=2)
    half = strength(alice, 0.5, space)
    assert torch.allclose(space.delta(half.weights, 0), 0.5 * space.delta(alice.weights, 0))
    assert torch.allclose(lora_delta(half, 1), 0.5 * lora_delta(alice, 1))


def test_mixing_strangers_is_refused(space: LiDBSpace) -> None:
    alice = person(space)
    with pytest.raises(WrongBase, match="mix persons of one base"):
        mix(alice, replace(alice, base="other"), 0.5, space)
    with pytest.raises(WrongSpace):
        mix(alice, alice, 0.5, LiDBSpace(SITES, a=5, b=4, seed=9))
