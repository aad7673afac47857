"""Peak memory and seconds of each low-memory mode, on a model of true size with random numbers.

    python -m benchmarks.memory --layout sd1 --device cpu

What a mode needs does not depend on what the numbers are, so no weights are fetched. Every figure is of a process of
its own: on CUDA the most that torch held at once, elsewhere the most that the system gave the process.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hyperdreambooth import DrawConfig, HyperDreamBooth
from hyperdreambooth.base.hardware import PRECISIONS, name_of, settle
from hyperdreambooth.base.memory import LADDER, LowMemory, reaches, save_memory
from hyperdreambooth.base.model import Base, Card
from hyperdreambooth.base.parts import read_json
from hyperdreambooth.base.prompting import SecondText
from hyperdreambooth.base.sampling import scheduler_of
from hyperdreambooth.base.single_file import LAYOUTS
from hyperdreambooth.base.tokenizer import clip_tokenizer
from hyperdreambooth.embedded import DEMO_PHOTO
from hyperdreambooth.files import write_text
from hyperdreambooth.lidb.recompute import recompute

WORK = ("personalise", "draw")


def random_base(
    layout: Path,
    size: int | None = None,
    a: int = 100,
    b: int = 50,
    making: AbstractContextManager[object] | None = None,
) -> Base:
    """A base of a layout with random numbers, float32 on the CPU.

    size: of its pictures, None its own; making: the context to make the networks in, such as one without numbers.
    """
    torch.manual_seed(0)
    with making or nullcontext():
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(layout / "vae"))
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(layout / "unet"))
        second = None
        if (layout / "text_encoder_2").is_dir():
            config = CLIPTextConfig.from_pretrained(layout / "text_encoder_2")
            second = SecondText(CLIPTextModelWithProjection(config), clip_tokenizer("!"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(layout / "text_encoder"))
    side = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    scheduler = scheduler_of(read_json(layout / "scheduler" / "scheduler_config.json"), str(layout))
    card = Card(layout.name, a=a, b=b, picture_size=size or side)
    return Base(vae, text_encoder, clip_tokenizer(), unet, scheduler, card, second)


def measure(base: Base, mode: LowMemory, work: str, steps: int) -> dict[str, Any]:
    """Do one kind of work for so many steps: seconds, and the most bytes that were needed since the process began.

    Loading is in it: a base that a device cannot hold at once is not saved by a mode that needs little afterwards.
    """
    began = time.perf_counter()
    fingerprint = base.fingerprint
    seconds = {"fingerprint": time.perf_counter() - began}
    booth = HyperDreamBooth(base)
    save_memory(base, mode, recompute)
    began = time.perf_counter()
    if work == "draw":
        booth.draw(None, "a photo of a face", DrawConfig(steps=steps))
    else:
        booth.personalize(DEMO_PHOTO, steps=steps)
    seconds[work] = time.perf_counter() - began
    return {"fingerprint": fingerprint, "seconds": seconds, "peak_bytes": peak_bytes(base.device)}


_PEAK, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def forget_peak(device: torch.device) -> None:
    """Let `peak_bytes` begin anew with what is held now, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _FORGET.exists():
        with suppress(OSError):  # not everywhere may a process do so
            _FORGET.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most memory that was held at once, since `forget_peak` or the process's begin."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if _PEAK.exists() and (line := re.search(r"VmHWM:\s+(\d+) kB", _PEAK.read_text())):
        return 1024 * int(line[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a mode and kind of work, each measured in a process of its own."""
    for mode in options.modes:
        for work in WORK:
            command = [sys.executable, "-m", "benchmarks.memory", "--layout", options.layout, "--one", mode, work]
            command += ["--steps", str(options.steps), "--a", str(options.a), "--b", str(options.b)]
            for name in ("size", "device", "precision"):
                if (value := getattr(options, name)) is not None:
                    command += [f"--{name}", str(value)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{mode}, {work}: {done.stderr.strip().splitlines()[-1]}")
            yield {"mode": mode, "work": work} | json.loads(done.stdout)


def one(options: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    mode, work = options.one
    base = random_base(_layout(options.layout), options.size, options.a, options.b)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    settle(base, options.device, PRECISIONS.get(options.precision), reaches(mode, "offload"))
    facts = {"device": str(base.device), "precision": name_of(base.dtype), "size": base.picture_size}
    return facts | measure(base, mode, work, options.steps)


def _layout(name: str) -> Path:
    """One of the package's, or a folder."""
    return LAYOUTS / name if (LAYOUTS / name).is_dir() else Path(name)


def table(measured: Sequence[dict[str, Any]]) -> Table:
    """What people read."""
    shown = Table("mode", "work", "peak (GB)", "seconds", "device", "precision", "picture")
    for row in measured:
        seconds = row["seconds"][row["work"]]
        facts = (row["device"], row["precision"], str(row["size"]))
        shown.add_row(row["mode"], row["work"], f"{row['peak_bytes'] / 1e9:.2f}", f"{seconds:.1f}", *facts)
    return shown


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", default="sd1", help="sd1, sd2, sdxl, or a folder of configurations")
    parser.add_argument("--size", type=int, help="of a picture in pixels; the layout's own")
    parser.add_argument("--steps", type=int, default=1, help="of fine-tuning, and of the sampler")
    parser.add_argument("--device", help="cpu, cuda, mps; what the hardware does well")
    parser.add_argument("--precision", choices=list(PRECISIONS), help="what the hardware does well")
    parser.add_argument("--modes", nargs="+", choices=LADDER, default=list(LADDER))
    parser.add_argument("--a", type=int, default=100, help="of the LiDB space")
    parser.add_argument("--b", type=int, default=50, help="of the LiDB space")
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    parser.add_argument("--one", nargs=2, metavar=("MODE", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options)))
        return
    measured = list(rows(options))
    Console(width=100).print(table(measured))
    if options.output:
        write_text(options.output, json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
