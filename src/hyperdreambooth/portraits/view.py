"""Views: everything in a picture of a person that is not the person."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

BACKGROUNDS = ("plain", "gradient", "bokeh", "wall", "foliage", "room", "sky", "stripes")
COLLARS = ("crew neck", "v-neck", "shirt", "turtleneck", "jacket", "hoodie")

# Muted colours, sRGB in [0, 1].
_BACKDROPS = (
    (0.74, 0.72, 0.68), (0.45, 0.52, 0.58), (0.62, 0.66, 0.60), (0.78, 0.68, 0.58), (0.36, 0.38, 0.44),
    (0.66, 0.55, 0.58), (0.55, 0.63, 0.70), (0.82, 0.79, 0.74), (0.42, 0.48, 0.42), (0.58, 0.48, 0.42),
)  # fmt: skip
_FABRICS = (
    (0.20, 0.25, 0.36), (0.78, 0.76, 0.72), (0.46, 0.22, 0.22), (0.26, 0.36, 0.30), (0.18, 0.18, 0.20),
    (0.62, 0.52, 0.38), (0.44, 0.52, 0.62), (0.56, 0.40, 0.50), (0.80, 0.62, 0.34), (0.30, 0.46, 0.50),
    (0.70, 0.44, 0.36), (0.88, 0.88, 0.90),
)  # fmt: skip


@dataclass(frozen=True)
class View:
    """Pose, light, expression, framing, background and clothes of one picture; the default is the reference view.

    Angles are in degrees (yaw > 0 turns the face to the right of the picture, pitch > 0 lowers it, roll > 0 leans it
    clockwise), `dx` and `dy` in picture heights, colours in sRGB [0, 1], everything else in the ranges given.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    light_x: float = -0.35  # from the left
    light_y: float = -0.45  # from above
    light_warmth: float = 0.15  # -1 blue to 1 orange
    light_strength: float = 1.0  # 0.7 to 1.3
    light_softness: float = 0.6  # 0 hard to 1 soft
    mouth_open: float = 0.0  # 0 to 1
    smile: float = 0.25  # -0.4 to 1
    brow_raise: float = 0.0  # -1 to 1
    eyelids: float = 1.0  # 0 shut to 1 open
    gaze_x: float = 0.0  # -1 to 1
    gaze_y: float = 0.0  # -1 to 1
    zoom: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    background: int = 0  # index into BACKGROUNDS
    background_colour: tuple[float, float, float] = _BACKDROPS[0]
    background_phase: float = 0.0  # where its pattern lies, in [0, 1]
    collar: int = 0  # index into COLLARS
    clothes_colour: tuple[float, float, float] = _FABRICS[0]

    @classmethod
    def reference(cls, random: np.random.RandomState | None = None) -> View:
        """Frontal, neutral and softly lit; `random` chooses background and clothes, nothing else."""
        return cls() if random is None else _elsewhere(cls(), random)

    @classmethod
    def sample(cls, random: np.random.RandomState) -> View:
        """A view as a portrait photographer might meet it; every field is drawn anew."""
        warmth, strength, softness = random.uniform(-0.5, 0.8), random.uniform(0.82, 1.18), random.uniform(0.2, 1.0)
        smile = random.uniform(-0.15, 1.0)
        view = cls(
            yaw=float(np.clip(random.normal(0.0, 11.0), -25.0, 25.0)),
            pitch=float(np.clip(random.normal(0.0, 4.5), -10.0, 10.0)),
            roll=float(np.clip(random.normal(0.0, 3.5), -9.0, 9.0)),
            light_x=random.uniform(-0.85, 0.85),
            light_y=random.uniform(-0.8, 0.05),
            light_warmth=warmth,
            light_strength=strength,
            light_softness=softness,
            mouth_open=max(0.0, random.uniform(-1.2, 0.9)),
            smile=smile,
            brow_raise=random.uniform(-0.6, 0.9),
            eyelids=random.uniform(0.72, 1.08),
            gaze_x=random.uniform(-0.7, 0.7),
            gaze_y=random.uniform(-0.4, 0.4),
            zoom=random.uniform(0.92, 1.07),
            dx=random.uniform(-0.025, 0.025),
            dy=random.uniform(-0.02, 0.025),
        )
        return _elsewhere(view, random)


def _elsewhere(view: View, random: np.random.RandomState) -> View:
    """The same view with background and clothes drawn anew."""
    return replace(
        view,
        background=int(random.randint(len(BACKGROUNDS))),
        collar=int(random.randint(len(COLLARS))),
        background_colour=_varied(random, _BACKDROPS),
        background_phase=float(random.rand()),
        clothes_colour=_varied(random, _FABRICS),
    )


def _varied(
    random: np.random.RandomState, palette: tuple[tuple[float, float, float], ...]
) -> tuple[float, float, float]:
    red, green, blue = np.clip(
        np.array(palette[random.randint(len(palette))]) + random.uniform(-0.06, 0.06, 3), 0.05, 0.95
    )
    return float(red), float(green), float(blue)
