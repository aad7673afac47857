"""Samplers by the names that other programs give them, in the place of a base's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from hyperdreambooth.errors import UserError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

Sampler = Literal["own", "ddim", "dpm++", "dpm++-sde", "euler", "euler-a", "unipc", "lcm", "tcd"]
"""What `sampler_of` knows. "own" is the one that a base came with; "dpm++" and "unipc" need fewer steps than most;
"lcm" and "tcd" draw in four, on bases that were taught to, by LCM or by Hyper-SD."""
_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {  # of diffusers
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


def sampler_of(name: Sampler, own: SchedulerMixin) -> SchedulerMixin:
    """The sampler of that name, with the noise levels and the kind of prediction of a base's own.

    Raises:
        UserError: there is none of that name.
    """
    import diffusers  # slow, and the command line needs the names alone

    if name == "own":
        return own
    if name not in _CLASSES:
        raise UserError(f"got sampler {name!r}, expected one of {', '.join(get_args(Sampler))}")
    cls, settings = _CLASSES[name]
    sampler: SchedulerMixin = getattr(diffusers, cls).from_config(own.config, **settings)
    return sampler
