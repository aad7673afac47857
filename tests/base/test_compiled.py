"""A compiled U-Net draws and fits what the plain one does, and no person needs it compiled anew.

Through "aot_eager", which compiles in seconds: what CUDA graphs need beside (mode, marks, copies) no test sees.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from hyperdreambooth.base.compiled import compile_unet
from hyperdreambooth.base.model import Base
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.errors import UserError
from hyperdreambooth.fitting.finetune import Relax
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import LoRALayout
from hyperdreambooth.lidb.linear import LiDBConv2d, LiDBLinear
from hyperdreambooth.lidb.recompute import recompute
from hyperdreambooth.personalization import PersonalizeConfig
from hyperdreambooth.pipeline import HyperDreamBooth

pytestmark = [  # torch says both while it compiles
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]

QUICK, PROMPT = DrawConfig(steps=2), "a [V] face"


@pytest.fixture
def booth(fresh_base: Base) -> Iterator[HyperDreamBooth]:
    torch.compiler.reset()
    counters.clear()
    yield HyperDreamBooth(fresh_base)
    torch.compiler.reset()


def people(booth: HyperDreamBooth, count: int) -> list[Identity]:
    """With full-space factors, as those who were fine-tuned."""
    generator, space = torch.Generator().manual_seed(1), booth.space
    size = LoRALayout(space.sites, 2).size
    return [
        Identity(
            space.start() + 0.2 * torch.randn(space.start().shape, generator=generator),
            space.info,
            booth.fingerprint,
            blocks=space.blocks,
            lora=0.2 * torch.randn(size, generator=generator),
        )
        for _ in range(count)
    ]


def pictures(booth: HyperDreamBooth, who: Sequence[Sequence[Identity]]) -> list[torch.Tensor]:
    return [booth.draw(some, [PROMPT] * len(some), QUICK) for some in who]


def test_compiled_it_draws_the_same_and_once_for_all_people(booth: HyperDreamBooth) -> None:
    one, two, three = people(booth, 3)
    who = ([one, two], [two, three], [one], [three])
    plain = pictures(booth, who)
    keys = list(booth.base.unet.state_dict())
    compile_unet(booth.base, "aot_eager")
    assert list(booth.base.unet.state_dict()) == keys and booth.base.fingerprint == booth.fingerprint
    graphs = list[int]()
    for expected, some in zip(plain, who, strict=True):
        assert torch.allclose(booth.draw(some, [PROMPT] * len(some), QUICK), expected, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[1] < graphs[2] == graphs[3]  # another pair, another person: the same graphs
    assert not counters["graph_break"]
    assert (plain[2] - plain[3]).abs().max() > 0.01


@pytest.mark.parametrize("relax", ["lora", "lidb"])
def test_compiled_it_fits_the_same(booth: HyperDreamBooth, relax: Relax) -> None:
    faces = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))

    def fitted() -> list[torch.Tensor]:
        made = []
        for face in faces:
            work = booth.personalizing([face], PersonalizeConfig(steps=3, relax=relax))
            for _ in work:
                pass
            (person,) = work.identities
            assert (person.lora is None) == (relax == "lidb")
            made.append(person.weights if person.lora is None else person.lora)
        return made

    plain = fitted()
    compile_unet(booth.base, "aot_eager")
    compiled = fitted()
    for one, other in zip(plain, compiled, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert (plain[0] - plain[1]).abs().max() > 1e-2


def test_what_people_wear_is_not_taken_for_fixed_to_its_place_in_memory(booth: HyperDreamBooth) -> None:
    """CUDA graphs copy what is none of the network's own tensors, and are recorded anew where such a one has moved."""
    fixed = list[list[bool]]()

    def noting(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        fixed.append(["_dynamo_static_input_type" in node.meta["tensor_dict"] for node in inputs])
        return graph

    booth.base.unet.compile(backend=noting)
    latents, states = booth.base.noise(1, torch.Generator().manual_seed(0)), booth.base.encode_prompts([PROMPT])
    (one,) = people(booth, 1)
    with booth.adapters.use(one.weights.unsqueeze(0)):
        booth.base.predict(latents, torch.tensor([5]), states.detach())
    (seen,) = fixed
    worn = sum(isinstance(layer, LiDBLinear | LiDBConv2d) for layer in booth.base.unet.modules())
    assert seen.count(False) >= 2 * worn > 0 and seen.count(True) >= len(list(booth.base.unet.parameters()))


def test_copies_of_it_are_not_compiled(booth: HyperDreamBooth) -> None:
    """Methods that fit all weights fit those of a copy: it must not answer with the original's."""
    compile_unet(booth.base, "aot_eager")
    copied = booth.base.with_networks(unet=deepcopy(booth.base.unet))
    with torch.no_grad():
        for parameter in copied.unet.parameters():
            parameter.mul_(1.5)
        latents = booth.base.noise(1, torch.Generator().manual_seed(0))
        asked = latents, torch.tensor(500), booth.base.encode_prompts([PROMPT])
        original, other = booth.base.predict(*asked), copied.predict(*asked)
        for mine, theirs in zip(booth.base.unet.parameters(), copied.unet.parameters(), strict=True):
            mine.copy_(theirs)
        assert not torch.allclose(original, other, atol=1e-2)
        assert torch.allclose(booth.base.predict(*asked), other, atol=1e-4)


def test_a_mode_that_saves_memory_does_not_go_with_it(booth: HyperDreamBooth) -> None:
    booth.base.unet.enable_gradient_checkpointing(recompute)
    with pytest.raises(UserError, match="leave one of them out"):
        compile_unet(booth.base)


def test_which_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got low-memory mode 'slicing' for a compiled U-Net"):
        HyperDreamBooth.load(tmp_path / "nothing", low_memory="slicing", compiled=True)


def test_a_backward_pass_that_is_due_keeps_what_it_needs(
    booth: HyperDreamBooth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch is told of a new step, which writes over what graphs kept, where nothing was kept for a backward pass."""
    marks = list[None]()
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(None))
    compile_unet(booth.base, "eager")
    latents = booth.base.noise(1, torch.Generator().manual_seed(0))
    states = booth.base.encode_prompts([PROMPT]).detach()
    with torch.no_grad():
        booth.base.predict(latents, torch.tensor([5]), states)
    assert len(marks) == 1
    for _ in range(2):
        booth.base.predict(latents, torch.tensor([5]), states)
    assert len(marks) == 1
