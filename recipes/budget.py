"""What the recipe may spend: one number per row, each of them an option of the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Any

from hyperdreambooth.errors import UserError
from hyperdreambooth.portraits.splits import TRAINING

# Minutes per thousand on two CPU cores, measured; trainings take the minutes that they are given.
_SEEK, _FRAME, _DRAW_PORTRAITS, _DRAW_PHOTOGRAPHS, _ENCODE, _CROWD = 3.0, 3.5, 0.1, 0.02, 0.05, 1.5
_FOLDER = 2.0  # thousand photographs in the folder, about


def _row(default: float, about: str) -> Any:
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Budget:
    """How much each stage may spend. The defaults take just under 6 h on two CPU cores."""

    people: int = _row(len(TRAINING), "portraits are drawn of the seeds below this")
    portraits: int = _row(40, "thousand portraits that VAE, base and scene classifier learn from")
    photograph_pictures: int = _row(16, "thousand versions of photographs that they learn from")
    lookalike_pictures: int = _row(16, "thousand more for the base, of people made of those in the photographs")
    people_pictures: int = _row(16, "thousand portraits, eight of each person, that the judges learn from")
    face_pictures: int = _row(24, "thousand plain portraits, four of each person, that the encoder learns from")
    verifier_minutes: float = _row(7.0, "of the face verifier")
    verifier_batch: int = _row(192, "squares in a batch of the face verifier, by twelves")
    vae_minutes: float = _row(28.0, "of the VAE")
    vae_lr: float = _row(2e-3, "learning rate of the VAE, falling to 0")
    vae_batch: int = _row(8, "pictures in a batch of the VAE")
    denoiser_minutes: float = _row(139.0, "of U-Net and text encoder")
    denoiser_lr: float = _row(1e-3, "learning rate of U-Net and text encoder, falling to 0")
    denoiser_batch: int = _row(48, "pictures in a batch of U-Net and text encoder, by threes")
    judge_minutes: float = _row(10.0, "of each of the five judges")
    judge_lr: float = _row(2e-3, "learning rate of the judges, falling to 0")
    judge_batch: int = _row(64, "pictures in a batch of scene classifier and attribute reader")
    self_supervised_batch: int = _row(96, "pictures, two versions of each, in a batch of the self-supervised encoder")
    image_text_batch: int = _row(160, "pictures and captions in a batch of the image-text model")
    recogniser_people: int = _row(24, "people of each world in a batch of the recogniser, four pictures of each")
    judged_people: int = _row(100, "tuning people whom the judges are measured on")
    encoder_people: int = _row(24, "people of each world in a batch of the encoder, three pictures of each")
    encoder_minutes: float = _row(20.0, "of the encoder that the hypernetwork starts from")
    fit_lr: float = _row(2e-2, "learning rate of pre-optimisation")
    fitted_portraits: int = _row(1024, "portraits who are pre-optimised, at most")
    fitted_photographs: int = _row(1024, "photographs that are pre-optimised, at most")
    fit_minutes: float = _row(8.0, "of pre-optimisation, half of it for each world")
    fit_steps: int = _row(50, "steps of pre-optimisation")
    fit_noises: int = _row(4, "samples through the U-Net per person and step of pre-optimisation")
    hypernetwork_portraits: int = _row(4096, "portraits that the hypernetwork learns from, those with numbers included")
    lookalikes: int = _row(3, "people whom the hypernetwork learns from made of each photograph, beside the one in it")
    hypernetwork_people: int = _row(16, "people in a batch of the hypernetwork, twice that for the weight loss alone")
    hypernetwork_noises: int = _row(8, "samples through the U-Net per person and step of the hypernetwork")
    hypernetwork_lr: float = _row(5e-4, "learning rate of the hypernetwork, falling to 0 in either phase")
    hypernetwork_minutes: float = _row(54.0, "of the hypernetwork; the weight loss alone gets a twentieth of them")
    e4t_minutes: float = _row(9.0, "of what E4T, a baseline, learns beforehand")

    def __post_init__(self) -> None:
        for row in ("people", "hypernetwork_portraits", "fitted_portraits"):
            if getattr(self, row) > len(TRAINING):
                raise UserError(
                    f"got {row} {getattr(self, row)}, expected at most {len(TRAINING)}: the seeds after these tune and "
                    "report, and must not be learnt from"
                )

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """One option per row: `--vae-minutes 40.0`."""
        rows = parser.add_argument_group("budget")
        for row in fields(cls):
            kind, name = type(row.default), "--" + row.name.replace("_", "-")
            rows.add_argument(name, type=kind, default=row.default, help=f"{row.metadata['about']} [{row.default}]")

    @classmethod
    def of(cls, options: argparse.Namespace) -> Budget:
        """What the command line said."""
        return cls(**{row.name: getattr(options, row.name) for row in fields(cls)})

    @property
    def shards(self) -> dict[str, int]:
        """Files of training pictures, a thousand in each, by what they show."""
        return {
            "portraits": self.portraits,
            "photographs": self.photograph_pictures,
            "lookalikes": self.lookalike_pictures,
        }

    def minutes(self) -> dict[str, float]:
        """About how long each stage takes, by name: given for trainings, estimated for two CPU cores elsewhere."""
        photographs = self.photograph_pictures + self.lookalike_pictures
        drawn = _DRAW_PORTRAITS * self.portraits + _DRAW_PHOTOGRAPHS * photographs
        return {
            "faces": _SEEK * _FOLDER + self.verifier_minutes,
            "frame": _FRAME * _FOLDER,
            "pictures": drawn,
            "vae": self.vae_minutes,
            "latents": _ENCODE * sum(self.shards.values()),
            "denoiser": self.denoiser_minutes,
            "people": _DRAW_PORTRAITS * (self.people_pictures + self.face_pictures),
            "judges": 5 * self.judge_minutes,
            "encoder": self.encoder_minutes,
            "crowd": _CROWD * (self.hypernetwork_portraits / 1000 + _FOLDER * (1 + self.lookalikes)),
            "fit": self.fit_minutes,
            "hypernetwork": self.hypernetwork_minutes,
            "ship": 0.0,
            "e4t": self.e4t_minutes,
        }
