"""FaceNet at its real shape, with random numbers; and the way in of the published file."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyperdreambooth.cli import measuring
from hyperdreambooth.errors import BadFile, NotWritable, UserError
from hyperdreambooth.evaluation.facenet import FORMAT, InceptionResnetV1, block35, convert, layout
from hyperdreambooth.files import load_tensors, save_tensors

PEOPLE = 8631  # of VGGFace2's training, whom `logits` tells apart
PUBLISHED_NUMBERS = 27_910_327  # that learn, `logits` included

# The published layout: (out, in, height, width) of each convolution's kernel.
STEM = {
    "conv2d_1a": (32, 3, 3, 3),
    "conv2d_2a": (32, 32, 3, 3),
    "conv2d_2b": (64, 32, 3, 3),
    "conv2d_3b": (80, 64, 1, 1),
    "conv2d_4a": (192, 80, 3, 3),
    "conv2d_4b": (256, 192, 3, 3),
}
BLOCK35 = {
    "branch0": (32, 256, 1, 1),
    "branch1.0": (32, 256, 1, 1),
    "branch1.1": (32, 32, 3, 3),
    "branch2.0": (32, 256, 1, 1),
    "branch2.1": (32, 32, 3, 3),
    "branch2.2": (32, 32, 3, 3),
}
MIXED_6A = {
    "branch0": (384, 256, 3, 3),
    "branch1.0": (192, 256, 1, 1),
    "branch1.1": (192, 192, 3, 3),
    "branch1.2": (256, 192, 3, 3),
}
BLOCK17 = {
    "branch0": (128, 896, 1, 1),
    "branch1.0": (128, 896, 1, 1),
    "branch1.1": (128, 128, 1, 7),
    "branch1.2": (128, 128, 7, 1),
}
MIXED_7A = {
    "branch0.0": (256, 896, 1, 1),
    "branch0.1": (384, 256, 3, 3),
    "branch1.0": (256, 896, 1, 1),
    "branch1.1": (256, 256, 3, 3),
    "branch2.0": (256, 896, 1, 1),
    "branch2.1": (256, 256, 3, 3),
    "branch2.2": (256, 256, 3, 3),
}
BLOCK8 = {
    "branch0": (192, 1792, 1, 1),
    "branch1.0": (192, 1792, 1, 1),
    "branch1.1": (192, 192, 1, 3),
    "branch1.2": (192, 192, 3, 1),
}
BLOCKS = {  # the convolutions of each, and the kernel that joins them, which has a bias
    **{f"repeat_1.{number}": (BLOCK35, (256, 96, 1, 1)) for number in range(5)},
    **{f"repeat_2.{number}": (BLOCK17, (896, 256, 1, 1)) for number in range(10)},
    **{f"repeat_3.{number}": (BLOCK8, (1792, 384, 1, 1)) for number in range(5)},
    "block8": (BLOCK8, (1792, 384, 1, 1)),
}


def published_layout() -> dict[str, tuple[int, ...]]:
    """Every tensor but `logits` and counters of batches."""
    kernels = dict(STEM)
    kernels |= {f"mixed_6a.{name}": shape for name, shape in MIXED_6A.items()}
    kernels |= {f"mixed_7a.{name}": shape for name, shape in MIXED_7A.items()}
    kernels |= {f"{block}.{name}": shape for block, (inner, _) in BLOCKS.items() for name, shape in inner.items()}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.conv.weight": shape for name, shape in kernels.items()}
    norms = {f"{name}.bn": shape[0] for name, shape in kernels.items()} | {"last_bn": 512}
    for part in ("weight", "bias", "running_mean", "running_var"):
        shapes |= {f"{name}.{part}": (width,) for name, width in norms.items()}
    for block, (_, joining) in BLOCKS.items():
        shapes |= {f"{block}.conv2d.weight": joining, f"{block}.conv2d.bias": joining[:1]}
    return shapes | {"last_linear.weight": (512, 1792)}


def randomise(network: torch.nn.Module) -> None:
    """Numbers under which signals neither fade nor grow."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(float(name.endswith("bn.weight")), 0.1, generator=generator)


@pytest.fixture(scope="module")
def network() -> InceptionResnetV1:
    with torch.device("meta"):
        network = InceptionResnetV1()
    network.to_empty(device="cpu").eval().requires_grad_(False)
    randomise(network)
    return network


@pytest.fixture(scope="module")
def converted(network: InceptionResnetV1, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's numbers as they are published, converted."""
    folder = tmp_path_factory.mktemp("facenet")
    logits = {"logits.weight": torch.zeros(()).expand(PEOPLE, 512), "logits.bias": torch.zeros(PEOPLE)}
    torch.save({**network.state_dict(), **logits}, folder / "published.pt")
    assert convert(folder / "published.pt", folder / "facenet.safetensors") > 0
    (folder / "published.pt").unlink()
    return folder / "facenet.safetensors"


def pixels(count: int, size: int = 160) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_layout_is_the_published_one() -> None:
    assert layout() == published_layout() and len(layout()) == 602
    with torch.device("meta"):
        network = InceptionResnetV1()
    learnt = sum(parameter.numel() for parameter in network.parameters())
    assert learnt + PEOPLE * 512 + PEOPLE == PUBLISHED_NUMBERS


class ByHand:
    """The same network once more, straight from tensors by name: the formula of each layer, in float64."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.state = {name: tensor.double() for name, tensor in network.state_dict().items()}

    def norm(self, name: str, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.ndim - 2)
        parts = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, var = (self.state[f"{name}.{part}"].view(shape) for part in parts)
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    def unit(self, name: str, x: Tensor, stride: int = 1, padding: int | tuple[int, int] = 0) -> Tensor:
        x = F.conv2d(x, self.state[f"{name}.conv.weight"], stride=stride, padding=padding)
        return self.norm(f"{name}.bn", x).clamp(min=0)

    def joined(self, block: str, x: Tensor, scale: float, *branches: Tensor) -> Tensor:
        weight, bias = self.state[f"{block}conv2d.weight"], self.state[f"{block}conv2d.bias"]
        return x + scale * F.conv2d(torch.cat(branches, dim=1), weight, bias)

    def block35(self, block: str, x: Tensor) -> Tensor:
        one = self.unit(f"{block}branch0", x)
        two = self.unit(f"{block}branch1.1", self.unit(f"{block}branch1.0", x), padding=1)
        three = self.unit(f"{block}branch2.1", self.unit(f"{block}branch2.0", x), padding=1)
        three = self.unit(f"{block}branch2.2", three, padding=1)
        return self.joined(block, x, 0.17, one, two, three).clamp(min=0)

    def crossed(self, block: str, x: Tensor, scale: float, half: int) -> Tensor:
        one = self.unit(f"{block}branch0", x)
        two = self.unit(f"{block}branch1.1", self.unit(f"{block}branch1.0", x), padding=(0, half))
        return self.joined(block, x, scale, one, self.unit(f"{block}branch1.2", two, padding=(half, 0)))

    def reduced(self, x: Tensor) -> Tensor:
        """The stem, five blocks and the first reduction."""
        x = self.unit("conv2d_2a", self.unit("conv2d_1a", x, stride=2))
        x = F.max_pool2d(self.unit("conv2d_2b", x, padding=1), 3, 2)
        x = self.unit("conv2d_4b", self.unit("conv2d_4a", self.unit("conv2d_3b", x)), stride=2)
        for number in range(5):
            x = self.block35(f"repeat_1.{number}.", x)
        two = self.unit("mixed_6a.branch1.1", self.unit("mixed_6a.branch1.0", x), padding=1)
        two = self.unit("mixed_6a.branch1.2", two, stride=2)
        return torch.cat([self.unit("mixed_6a.branch0", x, stride=2), two, F.max_pool2d(x, 3, 2)], dim=1)

    def embedding(self, x: Tensor) -> Tensor:
        x = self.reduced(x)
        for number in range(10):
            x = self.crossed(f"repeat_2.{number}.", x, 0.10, 3).clamp(min=0)
        one = self.unit("mixed_7a.branch0.1", self.unit("mixed_7a.branch0.0", x), stride=2)
        two = self.unit("mixed_7a.branch1.1", self.unit("mixed_7a.branch1.0", x), stride=2)
        three = self.unit("mixed_7a.branch2.1", self.unit("mixed_7a.branch2.0", x), padding=1)
        three = self.unit("mixed_7a.branch2.2", three, stride=2)
        x = torch.cat([one, two, three, F.max_pool2d(x, 3, 2)], dim=1)
        for number in range(5):
            x = self.crossed(f"repeat_3.{number}.", x, 0.20, 1).clamp(min=0)
        x = self.crossed("block8.", x, 1.0, 1).mean(dim=(2, 3))  # the last is not rectified
        x = self.norm("last_bn", x @ self.state["last_linear.weight"].T)
        return x / x.square().sum(dim=1, keepdim=True).sqrt()


def test_a_block_is_what_its_formula_says() -> None:
    block = block35().eval().requires_grad_(False)
    randomise(block)
    x = torch.randn(2, 256, 5, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(block(x), ByHand(block).block35("", x.double()).float(), rtol=1e-4, atol=1e-5)


def test_the_whole_is_what_its_formulas_say(network: InceptionResnetV1) -> None:
    shown = pixels(2, 120)  # a size at which every part still has something to see
    by_hand = ByHand(network).embedding(shown.double()).float()
    assert (by_hand[0] - by_hand[1]).abs().max() > 0.01
    torch.testing.assert_close(network(shown), by_hand, rtol=1e-3, atol=1e-5)


def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch(network: InceptionResnetV1) -> None:
    shown = pixels(3)
    embeddings = network(shown)
    assert embeddings.shape == (3, 512)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(network(shown[1:2]), embeddings[1:2])


def test_what_was_converted_embeds_the_same(network: InceptionResnetV1, converted: Path) -> None:
    loaded = InceptionResnetV1.load(converted)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(pixels(2)), network(pixels(2)))
    tensors, metadata = load_tensors(converted)
    assert metadata == {"format": FORMAT} and tensors.keys() == published_layout().keys()


def test_loading_draws_no_number(converted: Path) -> None:
    before = torch.get_rng_state()
    InceptionResnetV1.load(converted)
    assert torch.equal(before, torch.get_rng_state())


def hollow(**others: object) -> dict[str, object]:
    """The published layout in a small file: each tensor one number, many times over."""
    zeros: dict[str, object] = {name: torch.zeros(()).expand(shape) for name, shape in published_layout().items()}
    return {**zeros, **others}


@pytest.mark.parametrize("zipped", [True, False])
def test_the_command_reads_both_formats_of_torch(zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, target = tmp_path / "published.pt", tmp_path / "facenet.safetensors"
    counters = {"last_bn.num_batches_tracked": torch.tensor(7), "logits.bias": torch.zeros(PEOPLE)}
    torch.save(hollow(**counters), source, _use_new_zipfile_serialization=zipped)
    measuring.convert(source, target, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    running = sum(shape[0] for name, shape in published_layout().items() if "running" in name)
    assert facts["numbers"] == PUBLISHED_NUMBERS - 513 * PEOPLE + running
    assert facts["format"] == FORMAT and facts["bytes"] == target.stat().st_size
    InceptionResnetV1.load(target)


class Malicious:
    """What a pickled file can do to whoever opens it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def error_of(source: Path, target: Path) -> str:
    """The one line with which a file is refused; nothing is written."""
    with pytest.raises(BadFile) as caught:
        convert(source, target)
    line = str(caught.value)
    assert "\n" not in line and source.name in line and not target.exists()
    return line


@pytest.mark.parametrize("how", ["zipped", "as before", "bare"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(how: str, tmp_path: Path) -> None:
    source, mark = tmp_path / "published.pt", tmp_path / "mark"
    held = hollow(**{"last_bn.bias": Malicious(mark)})
    if how == "bare":
        source.write_bytes(pickle.dumps(Malicious(mark)))
    else:
        torch.save(held, source, _use_new_zipfile_serialization=how == "zipped")
    assert "something other than tensors (none of it was run)" in error_of(source, tmp_path / "facenet.safetensors")
    assert not mark.exists()
    with source.open("rb") as file:  # the file is what it is meant to be
        torch.load(file, weights_only=False) if how != "bare" else pickle.load(file)
    assert mark.exists()


def cut(path: Path) -> None:
    torch.save(hollow(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def saved(what: object) -> Callable[[Path], object]:
    return lambda path: torch.save(what, path)


def lacking() -> dict[str, object]:
    tensors = hollow()
    del tensors["mixed_6a.branch0.conv.weight"]
    return tensors


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "not there": (lambda path: None, "cannot read"),
    "a folder": (lambda path: path.mkdir(), "cannot read"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or damaged"),
    "truncated": (cut, "truncated or damaged"),
    "a picture": (lambda path: path.write_bytes(b"\xff\xd8 a picture, given by mistake"), "other than tensors"),
    "safetensors": (lambda path: save_tensors(path, {"x": torch.zeros(9)}), "other than tensors"),
    "a list": (saved([torch.zeros(1)]), "no tensors by name"),
    "numbers": (saved({"epoch": 3}), "no tensors by name"),
    "another network": (saved({"fc.weight": torch.zeros(2, 2)}), "'fc.weight', which FaceNet has not"),
    "nothing": (saved({}), "lacks 602 of 602 tensors, such as conv2d_1a.conv.weight"),
    "one lacking": (lambda path: torch.save(lacking(), path), "lacks 1 of 602 tensors, such as mixed_6a.branch0"),
    "another shape": (saved(hollow(**{"last_bn.bias": torch.zeros(128)})), "shape (128,), expected (512,)"),
    "no number": (
        saved(hollow(**{"last_bn.bias": torch.full((512,), torch.nan)})),
        "last_bn.bias that are no finite floats",
    ),
    "whole numbers": (
        saved(hollow(**{"last_bn.bias": torch.zeros(512, dtype=torch.int64)})),
        "last_bn.bias that are no finite",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_told_apart(kind: str, tmp_path: Path) -> None:
    make, words = BAD[kind]
    make(tmp_path / "published.pt")
    assert words in error_of(tmp_path / "published.pt", tmp_path / "facenet.safetensors")


def test_outputs_that_cannot_be_written_are_found_before_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for source, target in (("nobody.pt", tmp_path), ("nobody.pt", tmp_path / "file" / "x"), ("x.pt", Path("x.pt"))):
        with pytest.raises(NotWritable):
            measuring.convert(Path(source), target)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_no_converted_file_says_what_to_run(tmp_path: Path) -> None:
    path = tmp_path / "facenet.safetensors"
    with pytest.raises(UserError, match=r"no FaceNet weights at .*: fetch 2018.*\.pt .* hdb convert 2018.* -o"):
        InceptionResnetV1.load(path)
    save_tensors(path, {"x": torch.zeros(2)})
    with pytest.raises(BadFile, match=f"holds no format, expected {FORMAT}: make it with hdb convert"):
        InceptionResnetV1.load(path)
    save_tensors(path, {"last_bn.bias": torch.zeros(512)}, {"format": FORMAT})
    with pytest.raises(BadFile, match="lacks 601 of 602"):
        InceptionResnetV1.load(path)
