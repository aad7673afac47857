"""The plain pipeline that pictures are timed against draws what ours draws."""

import torch

from benchmarks.plain_picture import plain_picture, plain_pipeline
from hyperdreambooth.drawing import DrawConfig
from hyperdreambooth.pipeline import HyperDreamBooth


def test_the_plain_pipeline_draws_what_ours_draws_of_nobody(booth: HyperDreamBooth) -> None:
    generator, prompt = torch.Generator().manual_seed(3), "a watercolor of a face"
    ours = booth.draw([None], prompt, DrawConfig(steps=4, guidance=4.0, likeness=None, seed=3))
    noise = booth.base.noise(1, generator)  # then what the sampler adds on the way, as ours
    theirs = plain_picture(plain_pipeline(booth.base), noise, prompt, 4, 4.0, generator)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    other = plain_picture(plain_pipeline(booth.base), noise, prompt, 4, 6.0, torch.Generator().manual_seed(3))
    assert (other - theirs).abs().max() > 0.01
