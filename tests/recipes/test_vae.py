from __future__ import annotations

import torch
from torch import Tensor

from hyperdreambooth.base.model import Base
from hyperdreambooth.fitting.steps import FitConfig, steps
from recipes.photographs import Photographs
from recipes.vae import batch_of, latent_spread, quiet_residuals, reconstruction_loss


def test_batches_are_pictures_as_they_are_or_mirrored(framed: Photographs, generator: torch.Generator) -> None:
    shown = batch_of(framed.pictures, 40, generator, torch.device("cpu"))
    both = torch.cat([framed.pictures, framed.pictures.flip(-1)]).float() / 255
    matches = [int((both == picture).all(dim=(1, 2, 3)).nonzero()[0]) for picture in shown]
    assert {match >= 8 for match in matches} == {True, False} and len({match % 8 for match in matches}) > 4


def test_a_perfect_round_trip_costs_nothing_but_the_spread_of_the_posterior(generator: torch.Generator) -> None:
    class Mirror:
        """Decodes exactly what it was given, from a posterior that is standard normal."""

        def encode(self, x: Tensor) -> Mirror:
            self.x, self.latent_dist, self.mean = x, self, torch.zeros(len(x), 2)
            return self

        def sample(self, _generator: torch.Generator) -> Tensor:
            return self.x

        def kl(self) -> Tensor:
            return torch.zeros(len(self.x))

        def decode(self, x: Tensor) -> Mirror:
            decoded = Mirror()
            decoded.sample = x  # type: ignore[assignment, method-assign]
            return decoded

    loss, parts = reconstruction_loss(Mirror(), torch.rand(2, 3, 8, 8, generator=generator), generator)  # type: ignore
    assert loss == 0 and set(parts.values()) == {0.0}


def test_the_round_trip_gets_better(fresh_base: Base, framed: Photographs, generator: torch.Generator) -> None:
    vae = fresh_base.vae.requires_grad_(True)
    quiet_residuals(vae)
    shown = framed.centre(16)[:4]
    run = steps(
        dict(vae.named_parameters()),
        lambda _step: reconstruction_loss(vae, shown, generator),
        FitConfig(steps=12, lr=5e-3),
    )
    losses = [report.loss for report in run]
    assert losses[-1] < 0.85 * losses[0]


def test_quiet_residuals_add_but_a_constant_at_first(fresh_base: Base) -> None:
    quiet_residuals(fresh_base.vae)
    block = fresh_base.vae.encoder.mid_block.resnets[0]
    x = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        added = block(x, None) - x  # (1, 32, 4, 4)
    assert torch.allclose(added, added[:, :, :1, :1].expand_as(added), atol=1e-5)


def test_latents_divided_by_their_spread_have_unit_spread(tiny_base: Base, framed: Photographs) -> None:
    shown = framed.centre(16)
    with torch.no_grad():
        latents = tiny_base.vae.encode(shown * 2 - 1).latent_dist.mean / latent_spread(tiny_base.vae, shown)
    assert abs(float(latents.std()) - 1) < 1e-4
