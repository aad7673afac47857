"""The ladder of low-memory modes changes where numbers are and how often they are computed, never which they are."""

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hyperdreambooth.base import memory
from hyperdreambooth.base.build import PRESETS, build_base
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.memory import LADDER, next_mode, save_memory
from hyperdreambooth.base.model import Base
from hyperdreambooth.cli import run
from hyperdreambooth.errors import OutOfMemory, UserError
from hyperdreambooth.hypernetwork.model import PRESETS as SIZES
from hyperdreambooth.hypernetwork.model import build_hypernetwork
from hyperdreambooth.lidb import Adapters, inject
from hyperdreambooth.lidb.recompute import recompute
from hyperdreambooth.pipeline import HyperDreamBooth, space_of


def adapted() -> tuple[Base, Adapters]:
    base = build_base(PRESETS["tiny"], ["a", "face"])
    return base, inject(base.adapted, space_of(base))


def gradient(base: Base, adapters: Adapters, people: int = 2) -> Tensor:
    """Of a loss in the numbers of two people in one batch; the backward pass comes when nobody is worn any more."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(people, len(adapters.space.sites), 1, adapters.space.width, generator=generator)
    weights = (0.3 * weights).requires_grad_()
    with adapters.use(weights):
        states = base.encode_prompts(["a face"] * people)
        latents = torch.randn(people, *base.latent_shape, generator=generator)
        loss = base.predict(latents, torch.tensor(500), states).square().sum()
    other = torch.zeros_like(weights[:1])
    with adapters.use(other):  # and somebody else is worn by then
        loss.backward()
    assert weights.grad is not None
    return weights.grad


@pytest.mark.parametrize("mode", LADDER)
def test_gradients_are_those_of_plain_computation(mode: str) -> None:
    expected = gradient(*adapted())
    base, adapters = adapted()
    save_memory(base, mode, recompute)  # type: ignore[arg-type]
    got = gradient(base, adapters)
    assert expected.abs().max() > 0 and torch.allclose(
        got, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max())
    )


def test_checkpointing_keeps_less() -> None:
    """Bytes that autograd keeps of a forward pass."""

    def kept(base: Base, adapters: Adapters) -> int:
        seen = dict[int, int]()

        def pack(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = torch.zeros(1, len(adapters.space.sites), 1, adapters.space.width, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), adapters.use(weights):
            states = base.encode_prompts(["a face"] * 8)
            loss = base.predict(torch.randn(8, *base.latent_shape), torch.tensor(500), states).sum()
        del loss
        gc.collect()
        own = sum(p.numel() * 4 for p in base.unet.parameters())
        return sum(seen.values()) - own

    base, adapters = adapted()
    plain = kept(base, adapters)
    save_memory(base, "checkpointing", recompute)
    assert kept(base, adapters) < plain / 2


@pytest.mark.parametrize("mode", LADDER)
def test_pictures_and_identities_are_the_same(mode: str, base_folder: Path, portrait_file: Path) -> None:
    """Within what the order of sums in attention does."""

    def made(mode: str) -> tuple[Tensor, Tensor]:
        booth = HyperDreamBooth.load(base_folder, "cpu", hypernetwork=None, low_memory=mode)  # type: ignore[arg-type]
        alice = booth.personalize(str(portrait_file), steps=2)
        return alice.weights, booth.draw(alice, ["a [V] face", "a watercolor of a [V] face"])

    for got, expected in zip(made(mode), made("off"), strict=True):
        assert torch.allclose(got, expected, atol=2e-3)


def test_offloaded_networks_wait_on_the_cpu_and_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device in the place of a GPU: who is where, by what is done."""
    base, _ = adapted()
    networks = {"vae": base.vae, **base.adapted}
    for network in networks.values():
        monkeypatch.setattr(network, "forward", lambda *_, **__: None)
    base.home = torch.device("meta")  # nothing has to compute there

    def there() -> set[str]:
        return {name for name, network in networks.items() if next(network.parameters()).is_meta}

    with torch.no_grad():
        base._bring(base.vae)
        assert there() == {"vae"} and base.device.type == "meta"
    for network in networks.values():
        network.to_empty(device="cpu")
    base._bring(base.text_encoder)  # with gradients
    assert there() == {"text_encoder", "unet"}
    for network in networks.values():
        network.to_empty(device="cpu")
    base.to("meta", torch.float16)  # which is where they work from now on, and not where they go
    assert there() == set() and base.device.type == "meta" and base.dtype == torch.float16


class Places:
    """Where each network was last moved to, by a device's spelling: "cpu:0" works like any, and is not "cpu"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ever, self.seen = dict[nn.Module, str](), set[str](), list[tuple[str, set[str]]]()
        self.names, self._patch, move = dict[nn.Module, str](), monkeypatch, nn.Module.to

        def to(network: nn.Module, *to: object, **named: object) -> nn.Module:
            device = named.get("device", to[0] if to else None)
            if isinstance(device, str | torch.device):
                self.now[network] = str(device)
                self.ever.add(str(device))
            return move(network, *to, **named)

        monkeypatch.setattr(nn.Module, "to", to)

    def watch(self, name: str, network: nn.Module, method: str = "forward") -> None:
        """Note who is on the device whenever this network is at work."""
        self.names[network] = name
        work = getattr(network, method)

        def working(*given: object, **named: object) -> object:
            self.seen.append((name, self.on_device()))
            return work(*given, **named)

        self._patch.setattr(network, method, working)

    def on_device(self) -> set[str]:
        return {name for network, name in self.names.items() if self.now[network] == "cpu:0"}


def test_offloaded_from_the_start_the_hypernetwork_too(
    base_folder: Path, portrait_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(base_folder, "cpu")
    file = tmp_path / "hypernetwork.safetensors"
    build_hypernetwork(SIZES["tiny"], space_of(base), base.fingerprint, base.name).save(file)
    expected = HyperDreamBooth.load(base_folder, "cpu", hypernetwork=file).personalize(str(portrait_file), steps=2)

    places = Places(monkeypatch)
    booth = HyperDreamBooth.load(base_folder, "cpu:0", hypernetwork=file, low_memory="offload")
    assert places.ever == {"cpu"} and str(booth.base.device) == "cpu:0"
    assert booth.hypernetwork is not None
    places.now.setdefault(booth.hypernetwork, "cpu")  # where it was read
    places.watch("hypernetwork", booth.hypernetwork)
    places.watch("vae", booth.base.vae, "encode")
    for name, network in booth.base.adapted.items():
        places.watch(name, network)
    alice = booth.personalize(str(portrait_file), steps=2)
    adapted = set(booth.base.adapted)  # whose prompt is read once, before the fit
    together = {name: {name} for name in ("vae", "hypernetwork", "text_encoder")} | {"unet": adapted}
    assert {name for name, _ in places.seen} == set(together)
    assert all(there == together[name] for name, there in places.seen)
    assert torch.allclose(alice.weights, expected.weights, atol=2e-3)


def test_large_pictures_go_through_the_vae_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's VAE takes a whole picture for one tile; here tiles are smaller, blended over a quarter of them."""
    monkeypatch.setattr(memory, "LARGEST_TILE", 32)
    base, _ = adapted()
    base.vae.register_to_config(sample_size=64)
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))  # of 64 pixels
    with torch.no_grad():
        plain = base.decode(latents)
        save_memory(base, "slicing", recompute)
        tiled = base.decode(latents)
    assert base.vae.tile_sample_min_size == 32 and base.vae.tile_latent_min_size == 16
    assert tiled.shape == plain.shape and (tiled - plain).abs().max() > 0
    assert (tiled - plain).abs().mean() < 0.3 * plain.std()


def test_an_unknown_mode_is_refused(tiny_base: Base) -> None:
    with pytest.raises(UserError, match="off, checkpointing, slicing, offload"):
        save_memory(tiny_base, "magic", recompute)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", LADDER)
@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"),
    ],
    ids=["cuda", "cpu", "mps"],
)
def test_out_of_memory_names_the_next_mode(
    raised: RuntimeError,
    mode: str,
    base_folder: Path,
    portrait_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(Base, "encode_pictures", fail)
    command = ["personalize", str(portrait_file), "-o", str(tmp_path / "alice"), "--base", str(base_folder)]
    assert run([*command, "--hypernetwork", "none", "--low-memory", mode]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: the memory of cpu ran out with --low-memory {mode}: ")
    following = next_mode(mode)  # type: ignore[arg-type]
    assert (f"--low-memory {following}" if following else "a smaller base") in last.split(": ", 2)[2]
    assert str(OutOfMemory.of("cpu", mode, following)) in last


def short(*_: object, **__: object) -> None:
    """Does nothing for want of memory."""
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_whoever_has_no_room_for_the_base_is_told_to_leave_it_out(
    base_folder: Path,
    portrait_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The modes between change nothing of what lies on the device when it is opened."""

    monkeypatch.setattr("hyperdreambooth.base.loading.settle", short)
    command = ["personalize", str(portrait_file), "-o", str(tmp_path / "alice"), "--base", str(base_folder)]
    for mode, words in (("off", "again with --low-memory offload"), ("offload", "a smaller base")):
        assert run([*command, "--low-memory", mode]) == 1
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_commands_that_take_many_people_at_once_are_told_to_take_fewer(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hyperdreambooth.fitting.preoptimize.fit_people", short)
    command = ["preoptimize", "portraits:0-3", "-o", str(tmp_path / "fitted"), "--base", str(base_folder)]
    for more, words in (([], "--shard 16, or run again"), (["--shard", "1"], "--noises 1, or run again")):
        assert run([*command, *more]) == 1
        assert words in capsys.readouterr().err.splitlines()[-1]
