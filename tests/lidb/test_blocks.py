"""People in the residual blocks: a convolution is a linear layer on patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from hyperdreambooth.errors import UserError
from hyperdreambooth.files import load_tensors
from hyperdreambooth.identity import Identity, mix
from hyperdreambooth.lidb import LiDBSpace, Site, find_blocks, find_sites, inject
from hyperdreambooth.pipeline import HyperDreamBooth

SITES = (
    Site("unet.line", "unet", "line", 10, 9),
    Site("unet.three", "unet", "three", 3 * 9, 6, 3),
    Site("unet.one", "unet", "one", 6, 5, 1),
)
SPACE = LiDBSpace(SITES, a=4, b=3, scale=0.5, rule_sites=1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(10, 9)
        self.three = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.one = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(F.relu(self.three(x)))


@pytest.fixture
def persons(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 2, 7, generator=generator)  # (N, S, R, a + b)


def test_a_convolution_wears_what_its_whole_kernel_would(persons: Tensor, generator: torch.Generator) -> None:
    net, plain = Net(), Net()
    plain.load_state_dict(net.state_dict())
    keys, adapters = list(net.state_dict()), inject({"unet": net}, SPACE)
    assert list(net.state_dict()) == keys
    x = torch.randn(4, 3, 8, 8, generator=generator)
    bare = plain(x)
    assert torch.equal(net(x), bare)
    with adapters.use(persons):
        drawn = net(x)
    for row in range(4):
        with torch.no_grad():
            for index, layer in ((1, plain.three), (2, plain.one)):
                layer.weight += SPACE.delta(persons[row % 2], index).reshape(layer.weight.shape)
        assert torch.allclose(plain(x[row : row + 1]), drawn[row : row + 1], atol=1e-5)
        plain.load_state_dict(net.state_dict())
    adapters.merge(persons[1])
    assert torch.allclose(net(x)[1], drawn[1], atol=1e-5)
    adapters.unmerge()
    adapters.eject()
    assert torch.equal(net(x), bare) and type(net.three) is nn.Conv2d


def test_numbers_of_the_last_sites_over_weights_with_somebody(persons: Tensor, generator: torch.Generator) -> None:
    """They are as the two stacked, where the first sites have one alone."""
    net = Net()
    adapters, x = inject({"unet": net}, SPACE), torch.randn(2, 3, 8, 8, generator=generator)
    rows, (one, other) = torch.ones(2, 10), persons
    both = SPACE.stack([one, other])
    with adapters.use(both):
        expected = net(x)
    with adapters.use(one):
        line = net.line(rows)
    with adapters.use(other[1:], first=1, under=adapters.weights_with(one)):
        assert torch.allclose(net(x), expected, atol=1e-5)
        assert torch.allclose(net.line(rows), line, atol=1e-5)
    with pytest.raises(UserError, match=r"\(2, R, 7\)"), adapters.use(other, first=1):
        pass


def test_people_of_the_first_sites_leave_the_others_alone(persons: Tensor, generator: torch.Generator) -> None:
    net = Net()
    adapters, x = inject({"unet": net}, SPACE), torch.randn(2, 3, 8, 8, generator=generator)
    rows = torch.ones(2, 10)
    bare, bare_line = net(x), net.line(rows)
    with adapters.use(persons[:, :1]):
        assert torch.equal(net(x), bare)
        assert not torch.allclose(net.line(rows), bare_line, atol=1e-3)
    with adapters.use(SPACE.fill(persons[:, :1], ranks=3)):
        assert torch.allclose(net(x), bare, atol=1e-6)


def test_the_blocks_of_stable_diffusion() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    rule, blocks = find_sites(unet, None), find_blocks(unet)
    assert len(rule) == 144 and len(blocks) == 80  # 22 blocks of three layers, 14 shortcuts
    assert blocks[0].name == "unet.down_blocks.0.resnets.0.conv1" and blocks[0].n_in == 320 * 9
    assert [site.path.split(".")[0] for site in blocks] == sorted(
        (site.path.split(".")[0] for site in blocks), key=("down_blocks", "mid_block", "up_blocks").index
    )
    up = [site for site in blocks if site.path.startswith("up_blocks.")]
    assert LiDBSpace((*rule, *blocks), a=3, b=2, rule_sites=144).way_up == len(up) == 48
    assert 192 * 150 + 80 * 150 + 10 * 48 * 150 <= 115_000  # a prediction and ten ranks; int8 has scales beside


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_a_file_holds_only_the_ranks_that_change_anything(
    booth: HyperDreamBooth, tmp_path: Path, dtype: str, up: bool, generator: torch.Generator
) -> None:
    """Three in all residual blocks, or in those of the way up alone."""
    space = booth.space
    deep = space.way_up if up else space.blocks
    weights = torch.zeros(len(space.sites), 3, space.width)
    weights[:, :1] = torch.randn(len(space.sites), 1, space.width, generator=generator)
    weights[-deep:] = torch.randn(deep, 3, space.width, generator=generator)
    person = Identity(weights, space.info, booth.fingerprint, blocks=space.blocks)
    assert person.numbers == (len(space.sites) + 2 * deep) * space.width
    size = person.save(tmp_path / "a.safetensors", dtype)  # type: ignore[arg-type]
    assert size < {"fp32": 4, "fp16": 2, "int8": 1.3}[dtype] * person.numbers + 3000
    assert load_tensors(tmp_path / "a.safetensors")[1]["hyperdreambooth"] == ("4" if up else "1")
    again = booth.open(tmp_path / "a.safetensors")
    assert again.blocks == space.blocks and again.weights.shape == weights.shape
    assert torch.allclose(again.weights, weights, atol={"fp32": 0, "fp16": 2e-3, "int8": 0.03}[dtype])


def test_a_person_of_the_blocks_mixes_with_one_that_was_only_predicted(
    booth: HyperDreamBooth, generator: torch.Generator
) -> None:
    space, rule = booth.space, booth.space.rule
    one = torch.randn(len(space.sites), 2, space.width, generator=generator)
    other = torch.randn(len(rule.sites), 1, space.width, generator=generator)
    mixed = mix(
        Identity(one, space.info, booth.fingerprint, blocks=space.blocks),
        Identity(other, rule.info, booth.fingerprint),
        0.25,
        space,
    )
    assert mixed.blocks == space.blocks and mixed.space == space.info
    expected = 0.75 * space.cores(one)
    expected[: len(rule.sites)] += 0.25 * space.cores(other)
    best = torch.linalg.svd(expected)
    cut = (best.U[..., :2] * best.S[..., None, :2]) @ best.Vh[..., :2, :]
    assert torch.allclose(space.cores(mixed.weights), cut, atol=1e-4)
