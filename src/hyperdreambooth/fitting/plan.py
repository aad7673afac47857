"""The plan of a folder that long work goes on in: what decides the result, so that no two works mix in one folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperdreambooth.errors import UserError
from hyperdreambooth.files import write_atomically
from hyperdreambooth.lidb.basis import random_state

PLAN_FILE = "plan.json"
_PROJECTIONS = 4  # numbers per person in a sketch
_SHOWN = 3  # settings that differ, in a line
_TOLERANCE = 0.02  # of a number of a sketch, where two strangers differ by about 1: bfloat16 rounds by less


def keep_plan(folder: Path, plan: Mapping[str, object], data: Mapping[str, Tensor], *, begun: bool = True) -> None:
    """Write the plan into a folder without one, or check that the folder's own is the same.

    Args:
        folder: made if absent.
        plan: "format", which names the kind of work, and all that must be the same to the last digit.
        data: tensors (N, ...) of N people, floats of about unit size or bytes, which may be rounded otherwise when they
            are made again on another machine: their sketches are kept.
        begun: whether the folder holds anything of the work; if not, as after a run for which memory was short, a new
            plan takes the place of the old one.

    Raises:
        UserError: the folder's plan is damaged or another one; the line names what differs.
    """
    path = folder / PLAN_FILE
    sketches = {name: {"shape": list(tensor.shape), "sketch": _sketch(tensor)} for name, tensor in data.items()}
    text = json.dumps({**plan, "data": sketches}, indent=1) + "\n"
    saved, now = read_plan(folder, str(plan["format"])) if path.exists() else None, json.loads(text)
    if saved is None or not begun:
        write_atomically(path, lambda part: part.write_text(text))
        return
    keys = [*plan, *sorted(saved.keys() - now.keys())]
    differing = [_named(key, saved.get(key), now.get(key)) for key in keys if saved.get(key) != now.get(key)]
    differing += _other_data(saved.get("data"), now["data"])
    if differing:
        raise UserError(
            f"{folder} was begun with another {' and another '.join(differing)}, expected the same: "
            f"choose another folder, or go on with the settings in its {PLAN_FILE}"
        )


def _named(key: str, saved: object, now: object) -> str:
    """What differs, with its settings where it has some: "config (objective noises 4, here 2)"."""
    if isinstance(saved, list) and isinstance(now, list):
        return f"{key} ({_first_apart(saved, now)})"
    before, here = _settings(saved), _settings(now)
    apart = [name for name in here if before.get(name) != here[name]]
    if not isinstance(now, dict) or not apart:
        return key
    shown = [f"{name} {before.get(name, 'unknown')}, here {here[name]}" for name in apart[:_SHOWN]]
    return f"{key} ({'; '.join(shown)}{'; ...' if apart[_SHOWN:] else ''})"


def _first_apart(saved: list[Any], now: list[Any]) -> str:
    """Where two lists part: "number 3 is a, here b"."""
    number = next((row for row, pair in enumerate(zip(saved, now, strict=False)) if pair[0] != pair[1]), None)
    if number is None:
        return f"{len(saved)} of them, here {len(now)}"
    return f"number {number + 1} is {json.dumps(saved[number])}, here {json.dumps(now[number])}"


def _settings(values: object, of: str = "") -> dict[str, object]:
    """Settings inside settings, each with its whole name."""
    if not isinstance(values, dict):
        return {of: values} if of else {}
    inner = (_settings(value, f"{of} {name}".strip()) for name, value in values.items())
    return {name: value for some in inner for name, value in some.items()}


def read_plan(folder: Path, form: str) -> dict[str, Any]:
    """The plan of a folder. Raises UserError where it is damaged, or its format is not `form`."""
    path = folder / PLAN_FILE
    try:
        plan = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:80]}), expected the plan of a work in JSON: "
            "choose another folder, or empty this one and begin anew"
        ) from error
    got = plan.get("format") if isinstance(plan, dict) else type(plan).__name__
    if got != form:
        raise UserError(f"{path} holds {got}, expected {form}: choose another folder")
    return dict(plan)


def plan_digest(folder: Path) -> str:
    """16 hex digits of a hash of a folder's plan, for what is of that plan alone; empty where there is none."""
    path = folder / PLAN_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


def digest(*tensors: Tensor) -> str:
    """16 hex digits of a hash of shapes, dtypes and every bit."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _sketch(tensor: Tensor) -> list[list[float]]:
    """(N, ...) -> (N, 4): random projections of each person, of the size of the tensor's numbers; bytes count 1/255."""
    size = tensor[0].numel()
    axes = random_state("sketch", size).standard_normal((size, _PROJECTIONS)) / size**0.5
    projection = torch.from_numpy(axes.astype(np.float32))  # (size, 4)
    unit = 255 if tensor.dtype == torch.uint8 else 1
    parts = [part.detach().cpu().float().flatten(1) @ projection / unit for part in tensor.split(8)]
    return [[round(value, 4) for value in row] for row in torch.cat(parts).tolist()]


def _other_data(saved: object, now: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Names of the data that are on one side alone, of another shape, or apart by more than rounding."""
    saved = saved if isinstance(saved, dict) else {}
    names = [name for name in now if name not in saved] + [name for name in saved if name not in now]
    return names + [name for name in now if name in saved and not _alike(saved[name], now[name])]


def _alike(saved: Any, now: Mapping[str, Any]) -> bool:
    try:
        same = np.allclose(saved["sketch"], now["sketch"], rtol=0.0, atol=_TOLERANCE, equal_nan=True)
        return bool(same and saved["shape"] == now["shape"])
    except (KeyError, TypeError, ValueError):  # another number of people, or damaged
        return False
