"""From person, view and scene to the numbers that the renderer draws with, in float64 until the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .captions import Scene
from .person import ATTRIBUTES, BEARDS, EARRINGS, GLASSES, HAIR_STYLES, MOLES, Person
from .view import COLLARS, View

Array = NDArray[np.float64]

# Light to dark, sRGB.
_SKIN = np.array([
    [0.965, 0.835, 0.765], [0.925, 0.755, 0.655], [0.850, 0.655, 0.530],
    [0.725, 0.520, 0.395], [0.550, 0.370, 0.270], [0.385, 0.245, 0.180],
])  # fmt: skip
_HAIR = np.array([
    [0.085, 0.075, 0.080], [0.190, 0.130, 0.105], [0.330, 0.220, 0.150], [0.430, 0.245, 0.140], [0.490, 0.190, 0.115],
    [0.720, 0.360, 0.150], [0.820, 0.640, 0.360], [0.900, 0.825, 0.660],
])  # fmt: skip
_GREY = np.array([0.760, 0.755, 0.750])
_EYES = np.array([
    [0.200, 0.110, 0.070], [0.380, 0.220, 0.110], [0.640, 0.400, 0.130], [0.480, 0.430, 0.200], [0.280, 0.500, 0.290],
    [0.260, 0.480, 0.720], [0.500, 0.560, 0.610],
])  # fmt: skip
_FRAMES = np.array([[0.06, 0.06, 0.07], [0.60, 0.33, 0.12], [0.84, 0.62, 0.28], [0.66, 0.12, 0.14], [0.08, 0.42, 0.44]])

# One row per hair style: how far it falls below the eyes, what it adds to the skull on top and at the sides, how
# bluntly it ends, how much the curtain flares, height of the hairline above the eyes, its droop to the sides, its sweep
# across the forehead, inner edge at the sides in half face widths, how fast that opens downwards, curls and waves.
_HAIR_COLUMNS = ("fall", "top", "side", "blunt", "flare", "line", "droop", "sweep", "inner", "open", "curl", "wave")
_HAIR_ROWS: Mapping[str, tuple[float, ...]] = {
    "bald": (-0.10, -0.030, -0.030, 2.5, 0.0, 0.50, 0.00, 0.00, 1.00, 0.0, 0.0, 0.0),
    "buzz": (0.03, 0.004, 0.000, 3.0, 0.0, 0.250, 0.09, 0.00, 0.97, 0.0, 0.0, 0.0),
    "short": (0.04, 0.038, 0.020, 3.0, 0.0, 0.215, 0.08, 0.03, 0.97, 0.0, 0.0, 0.0),
    "side part": (0.04, 0.042, 0.018, 3.0, 0.0, 0.225, 0.07, 0.11, 0.97, 0.0, 0.0, 0.0),
    "quiff": (0.02, 0.085, 0.002, 3.0, 0.0, 0.245, 0.08, -0.03, 0.98, 0.0, 0.0, 0.0),
    "curly": (0.06, 0.065, 0.055, 3.0, 0.0, 0.205, 0.05, 0.02, 0.97, 0.0, 1.0, 0.0),
    "afro": (0.17, 0.125, 0.130, 2.2, 0.0, 0.225, 0.06, 0.00, 0.95, 0.0, 0.8, 0.0),
    "bob": (0.33, 0.045, 0.050, 7.0, 0.06, 0.240, 0.10, 0.10, 0.84, 0.10, 0.0, 0.0),
    "fringe bob": (0.32, 0.045, 0.055, 7.0, 0.08, 0.105, 0.01, 0.00, 0.84, 0.05, 0.0, 0.0),
    "long straight": (0.62, 0.038, 0.035, 9.0, 0.12, 0.245, 0.12, 0.00, 0.84, 0.10, 0.0, 0.0),
    "long wavy": (0.60, 0.055, 0.060, 6.0, 0.22, 0.235, 0.12, 0.09, 0.86, 0.12, 0.0, 1.0),
    "long curls": (0.56, 0.075, 0.095, 4.0, 0.25, 0.215, 0.08, 0.05, 0.88, 0.10, 1.0, 0.4),
    "top bun": (0.02, 0.022, 0.006, 3.0, 0.0, 0.235, 0.08, 0.00, 0.98, 0.0, 0.0, 0.0),
    "ponytail": (0.03, 0.030, 0.008, 3.0, 0.0, 0.235, 0.08, 0.05, 0.97, 0.0, 0.0, 0.0),
    "mohawk": (-0.02, 0.000, -0.004, 3.0, 0.0, 0.255, 0.07, 0.00, 0.99, 0.0, 0.0, 0.0),
    "balding": (0.06, -0.125, 0.022, 3.0, 0.0, 0.46, 0.62, 0.00, 0.97, 0.0, 0.0, 0.0),
    "twin buns": (0.03, 0.028, 0.008, 3.0, 0.0, 0.160, 0.02, 0.00, 0.97, 0.0, 0.0, 0.0),
    "long fringe": (0.62, 0.045, 0.045, 9.0, 0.08, 0.100, 0.01, 0.00, 0.84, 0.06, 0.0, 0.0),
}  # fmt: skip


# How a context changes the light: added warmth, factor of strength, colour of the light from all around.
_CONTEXT_LIGHT = {
    "at the beach": (0.3, 1.08, 1.08, 1.02, 0.96),
    "in the snow": (-0.2, 1.05, 0.96, 1.02, 1.12),
    "in a city at night": (0.1, 0.90, 0.66, 0.64, 1.35),
    "in space": (-0.2, 0.94, 0.80, 0.60, 1.35),
    "in a forest": (0.05, 0.92, 0.84, 1.10, 0.78),
}


class Numbers(Mapping[str, Tensor]):
    """Everything a batch of pictures is drawn with: numbers (N, 1, 1, 1) and linear colours (N, 3, 1, 1) by name."""

    def __init__(self, values: Mapping[str, Tensor], pictures: Tensor | None = None) -> None:
        self._values = values
        self._pictures = pictures

    def __getitem__(self, name: str) -> Tensor:
        value = self._values[name]
        return value if self._pictures is None else value[self._pictures]

    def of(self, pictures: Tensor) -> Numbers:
        """The numbers of some of the pictures, by index (K,)."""
        return Numbers(self, pictures)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def numbers(people: Sequence[Person], views: Sequence[View], scenes: Sequence[Scene]) -> Numbers:
    """The numbers of N pictures.

    Returns:
        float32 numbers by name; colours are linear light (the square of sRGB).
    """
    g = {a.name: np.array([p.values[a.name] for p in people]) for a in ATTRIBUTES}
    g |= {f"view_{k}": np.array([getattr(v, k) for v in views], dtype=np.float64) for k in View.__dataclass_fields__}
    g["phase"] = np.array([float(np.random.RandomState(p.seed).rand() * 6.28) for p in people])
    for key, name in (("doll", "doll"), ("cartoon", "animation character")):
        g[key] = np.array([s.domain == name for s in scenes], dtype=np.float64)
    _pose(g)
    _edit(g, [s.edit for s in scenes])
    _colours(g, [s.edit for s in scenes])
    _hair(g, [HAIR_STYLES[int(i)] for i in g["hair_style"]])
    _domain(g)
    for key, names in (("beard", BEARDS), ("glasses", GLASSES), ("earrings", EARRINGS), ("mole", MOLES)):
        _flags(g, key, names)
    _flags(g, "view_collar", COLLARS)
    _light(g, [s.context for s in scenes])
    return Numbers({k: _tensor(v) for k, v in g.items()})


def _tensor(values: Array) -> Tensor:
    """(N,) or (N, 3) to float32 (N, 1 or 3, 1, 1)."""
    t = torch.from_numpy(np.asarray(values, dtype=np.float64)).float()
    return t.reshape(len(t), -1, 1, 1)


def _flags(g: dict[str, Array], key: str, names: Sequence[str]) -> None:
    """`is <key> <name>`: 1 where the choice is that one, else 0."""
    for index, name in enumerate(names):
        g[f"{key} is {name}"] = (g[key] == index).astype(np.float64)


def _pose(g: dict[str, Array]) -> None:
    """Sines and cosines of the head's angles."""
    for angle in ("yaw", "pitch", "roll"):
        radians = np.deg2rad(g[f"view_{angle}"])
        g[f"sin_{angle}"], g[f"cos_{angle}"] = np.sin(radians), np.cos(radians)


def _edit(g: dict[str, Array], edits: Sequence[str | None]) -> None:
    """What an edit changes in a person, before anything is derived from it."""
    said = {
        name: np.array([e == name for e in edits]) for name in ("smiling", "old", "wearing a hat", "wearing sunglasses")
    }
    g["view_smile"] = np.where(said["smiling"], 1.05, g["view_smile"])
    g["view_mouth_open"] = np.where(said["smiling"], np.maximum(g["view_mouth_open"], 0.55), g["view_mouth_open"])
    g["age"] = np.where(said["old"], np.maximum(g["age"], 1.15), g["age"])
    g["grey"] = np.where(said["old"], np.maximum(g["grey"], 0.95), g["grey"])
    g["hat"], g["sunglasses"] = said["wearing a hat"].astype(np.float64), said["wearing sunglasses"].astype(np.float64)


def _colours(g: dict[str, Array], edits: Sequence[str | None]) -> None:
    """Linear colours `<what>_rgb` (N, 3); dye changes the hair and leaves brows and beard."""
    tone = g["skin_tone"] * (len(_SKIN) - 1)
    skin = np.stack([np.interp(tone, np.arange(len(_SKIN)), _SKIN[:, c]) for c in range(3)], axis=1)  # (N, 3)
    porcelain = 0.30 * g["doll"][:, None]
    skin = skin + porcelain * (np.array([0.97, 0.88, 0.83]) - skin)
    skin = skin * (1.0 + g["skin_warmth"][:, None] * np.array([0.018, -0.004, -0.045]))
    hair = _HAIR[g["hair_colour"].astype(int)]
    hair = hair * (1.0 + 0.22 * g["hair_shade"][:, None])
    grey = 0.9 * g["grey"][:, None]
    hair = hair + grey * (_GREY * (0.8 + 0.2 * hair.mean(1, keepdims=True)) - hair)
    brow, beard = 0.75 * hair, 0.84 * hair
    dyed = {"with blue hair": [0.13, 0.30, 0.80], "with red hair": [0.78, 0.10, 0.08]}
    for index, e in enumerate(edits):
        if e in dyed:
            hair[index] = np.array(dyed[e]) * (1.0 + 0.15 * g["hair_shade"][index])
    lip = (
        skin * np.array([0.86, 0.66, 0.64])
        + (g["lip_colour"][:, None] ** 1.5) * (np.array([0.66, 0.20, 0.24]) - skin * 0.7) * 0.55
    )
    eye, metal = _EYES[g["eye_colour"].astype(int)], _FRAMES[g["frame_colour"].astype(int)]
    pairs = {"skin": skin, "hair": hair, "brow": brow, "beard": beard, "lip": lip, "eye": eye, "frame": metal}
    g.update({f"{name}_rgb": np.clip(c, 0.01, 1.0) ** 2 for name, c in pairs.items()})
    for name in ("view_background_colour", "view_clothes_colour"):
        g[name] = g[name] ** 2


def _hair(g: dict[str, Array], styles: Sequence[str]) -> None:
    """The row of each style, adjusted to the person's length, volume, hairline and parting."""
    table = np.array([_HAIR_ROWS[s] for s in styles])  # (N, columns)
    h = {f"hair_{name}": table[:, i].copy() for i, name in enumerate(_HAIR_COLUMNS)}
    long, hairy = h["hair_fall"] > 0.2, np.array([s != "bald" for s in styles])
    h["hair_fall"] += np.where(long, 0.16, 0.03) * (g["hair_length"] - 0.5)
    full = 0.5 + g["hair_volume"]
    h["hair_top"] = np.where(h["hair_top"] > 0.01, h["hair_top"] * full, h["hair_top"])
    h["hair_side"] = np.where(h["hair_side"] > 0.01, h["hair_side"] * full, h["hair_side"])
    h["hair_line"] += 0.045 * (g["hairline"] - 0.4) * np.where(h["hair_line"] > 0.15, 1.0, 0.4)
    side = np.where(g["hair_part"] < 0, -1.0, 1.0)
    h["hair_side_sign"] = side
    h["hairy"] = hairy.astype(np.float64)
    g.update(h)
    for name in HAIR_STYLES:
        g[f"hair is {name}"] = np.array([s == name for s in styles], dtype=np.float64)


def _domain(g: dict[str, Array]) -> None:
    """Other proportions, the same person."""
    doll, cartoon = g["doll"], g["cartoon"]
    g["eye_size"] = g["eye_size"] * (1 + 0.28 * doll + 0.48 * cartoon)
    g["eye_openness"] = g["eye_openness"] * (1 + 0.30 * doll + 0.42 * cartoon)
    g["mouth_width"] = g["mouth_width"] * (1 - 0.28 * doll - 0.18 * cartoon)
    g["nose_width"] = g["nose_width"] * (1 - 0.22 * doll - 0.35 * cartoon)
    g["nose_length"] = g["nose_length"] * (1 - 0.06 * doll - 0.10 * cartoon)
    g["face_width"] = g["face_width"] * (1 + 0.03 * doll + 0.07 * cartoon)
    g["cheek_fullness"] = g["cheek_fullness"] + 0.3 * doll + 0.4 * cartoon
    g["jaw_width"] = g["jaw_width"] - 0.1 * doll - 0.25 * cartoon
    g["neck_width"] = g["neck_width"] * (1 - 0.18 * doll - 0.30 * cartoon)
    g["eye_spacing"] = g["eye_spacing"] * (1 + 0.03 * doll + 0.10 * cartoon)
    g["brow_height"] = g["brow_height"] * (1 + 0.15 * doll + 0.35 * cartoon)
    g["blush"] = g["blush"] * (1 - 0.3 * doll) + 0.8 * doll + 0.25 * cartoon
    g["age"] = g["age"] * (1 - 0.9 * doll - 0.6 * cartoon)
    g["smooth"] = doll + cartoon


def _light(g: dict[str, Array], contexts: Sequence[str | None]) -> None:
    """Direction of the key light, colours of key and ambient light."""
    lz = 0.85  # the light stands in front of the person, never behind
    x, y = g["view_light_x"], g["view_light_y"]
    norm = np.sqrt(x * x + y * y + lz * lz)
    g["light_x"], g["light_y"], g["light_z"] = x / norm, y / norm, lz / norm
    warm = g["view_light_warmth"].copy()
    strength = g["view_light_strength"].copy()
    around = np.ones((len(warm), 3))
    for name, (shift, factor, *glow) in _CONTEXT_LIGHT.items():
        said = np.array([c == name for c in contexts])
        warm, strength = np.where(said, warm * 0.4 + shift, warm), np.where(said, strength * factor, strength)
        around[said] = glow
    tint = np.stack([1 + 0.16 * warm, 1 + 0.01 * warm, 1 - 0.20 * warm], axis=1)
    soft = g["view_light_softness"]
    g["key_rgb"] = tint * (strength * (1.10 - 0.30 * soft))[:, None]
    fill = np.stack([1 - 0.06 * warm, np.ones_like(warm), 1 + 0.10 * warm], axis=1)
    g["ambient_rgb"] = ((0.21 + 0.24 * soft) * strength)[:, None] * fill * around
