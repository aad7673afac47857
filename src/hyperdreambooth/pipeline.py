"""The main job on one page: one photograph in, an identity out, and pictures of that person in any style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hyperdreambooth.base.compiled import compile_unet
from hyperdreambooth.base.loading import load_base
from hyperdreambooth.base.memory import LowMemory, reaches, save_memory
from hyperdreambooth.base.model import Base
from hyperdreambooth.base.samplers import Sampler, sampler_of
from hyperdreambooth.drawing import (
    DrawConfig,
    Likeness,
    Person,
    Subject,
    check_person,
    draw,
    named_in,
    note_faults,
    note_other_word,
    pair,
)
from hyperdreambooth.embedded import HYPERNETWORK
from hyperdreambooth.errors import BadIdentityFile, UserError, WrongBase, WrongSpace
from hyperdreambooth.fitting.finetune import Relax
from hyperdreambooth.hypernetwork.model import HyperNetwork
from hyperdreambooth.hypernetwork.training import RESULT_FILE
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import LiDBSpace, find_blocks, find_sites, inject
from hyperdreambooth.lidb.recompute import recompute
from hyperdreambooth.personalization import Personalization, PersonalizeConfig, Photos
from hyperdreambooth.progress import Progress, log
from hyperdreambooth.sheet import to_image
from hyperdreambooth.tuned import Tuned, is_tuned

OnProgress = Callable[[Progress], None]


class HyperDreamBooth:
    """A base that wears people: it makes identities from photographs and draws them.

        booth = HyperDreamBooth.load("embedded")
        alice = booth.personalize("alice.jpg")
        alice.save("alice.safetensors")
        pictures = booth.generate(alice, "a watercolor of a [V] face", count=4)

    Args:
        base: frozen; adapters are injected into it, and `adapters.eject()` takes them out again.
        hypernetwork: predicts a person from a face; None leaves everything to fine-tuning from the common start.
    """

    def __init__(self, base: Base, hypernetwork: HyperNetwork | None = None) -> None:
        self.base, self.hypernetwork = base, hypernetwork
        self.fingerprint, self.space = base.fingerprint, space_of(base)
        self.adapters = inject(base.adapted, self.space)

    @classmethod
    def load(
        cls,
        base: str | Path = "embedded",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        hypernetwork: str | Path | None = "embedded",
        low_memory: LowMemory = "off",
        compiled: bool = False,
        sampler: Sampler = "own",
    ) -> HyperDreamBooth:
        """Open a base and the hypernetwork made for it.

        Args:
            base: "embedded", a folder in diffusers' layout, an id of the hub, or a single-file checkpoint.
            device, dtype: of the base; None chooses what the hardware does well, float32 on a CPU.
            low_memory: how much time to give for memory: see `base.memory.LowMemory`.
            compiled: the U-Net, for much work of one kind: see `base.compiled.compile_unet`.
            hypernetwork: "embedded", which is the shipped one where it fits the base, else none; a file, or the
                folder of its training; or None.
            sampler: in the place of the base's own.

        Raises:
            BadBase, BadFile: not whole. WrongBase, WrongSpace: the hypernetwork's file is for another base. UserError:
                compiled, with a mode that saves memory; no such sampler.
        """
        if compiled and reaches(low_memory, "checkpointing"):
            raise UserError(f"got low-memory mode {low_memory!r} for a compiled U-Net, expected 'off': choose one")
        booth = cls(load_base(base, device, dtype, offload=reaches(low_memory, "offload")))
        booth.base.scheduler = sampler_of(sampler, booth.base.scheduler)
        save_memory(booth.base, low_memory, recompute)
        if compiled:
            compile_unet(booth.base)
        booth.hypernetwork = _load_hypernetwork(booth, hypernetwork)
        return booth

    def personalize(
        self,
        photo: Photos,
        *,
        steps: int = 40,
        noises: int = 2,
        relax: Relax | None = None,
        rank: int | None = None,
        prompt: str = "a [V] face",
        seed: int = 0,
        progress: OnProgress | None = None,
    ) -> Identity:
        """The identity of the person in one photograph or several: predict, relax, fine-tune.

        Args:
            photo: a picture file, a PIL image, or a tensor (3, H, W), float in [0, 1] or uint8; a list of them is
                several photographs of one person: the predictions are averaged, the fit is to all.
            steps: of fine-tuning; 0 is the hypernetwork alone.
            noises: samples through the U-Net per step.
            relax: where the fresh factors of fine-tuning live: "lidb" (in the bases), "lora" (full space), "none" (no
                fresh ones); None is full space where people stay small in it, see `relaxation_in`.
            rank: of the fresh factors; None is 6 to 12 for "lidb", see `FinetuneConfig.rank_in`, 4 for "lora".
            prompt: that the photograph is fitted to, "[V]" standing for the person.
            seed: of the noises.
            progress: called at every step of the work.

        Raises:
            BadPicture: not a photograph. UserError: settings without sense, or neither steps nor a hypernetwork.
        """
        work = self.personalizing([photo], PersonalizeConfig(steps, noises, relax, rank, prompt, seed))
        for report in work:
            if progress is not None:
                progress(report)
        return work.identities[0]

    def personalizing(self, photos: Sequence[Photos], config: PersonalizeConfig | None = None) -> Personalization:
        """N different people in one batch, by one photograph or a list of several of each.

        Returns an iterable of Progress that holds the results.
        """
        work = Personalization(
            self.base, self.adapters, self.hypernetwork, photos, config or PersonalizeConfig(), self.fingerprint
        )
        self.note_missing()
        return work

    def note_missing(self) -> None:
        """Log that there is no hypernetwork, for a method that would use one."""
        if self.hypernetwork is None:
            name = self.base.name
            log.warning('there is no hypernetwork for the base "%s": fine-tuning alone, from the common start', name)

    def open(self, path: str | Path) -> Identity:
        """Read an identity file that was made for this base. Raises BadIdentityFile, WrongBase or WrongSpace."""
        if is_tuned(path):
            raise BadIdentityFile(
                f"{path} holds a person in weights of their own, expected an identity, a few numbers beside the base: "
                "only hdb generate and hdb inspect take both"
            )
        return Identity.open(path, space=self.space, base=self.fingerprint, base_name=self.base.name)

    def open_person(self, path: str | Path) -> Person:
        """Read the file of a person of any method: an identity, or one with weights of their own. Raises as `open`."""
        return Tuned.open(path, self.base) if is_tuned(path) else self.open(path)

    def generate(
        self,
        people: Subject | Sequence[Subject],
        prompts: str | Sequence[str],
        *,
        count: int = 1,
        seed: int = 0,
        steps: int = 25,
        guidance: float = DrawConfig.guidance,
        likeness: Likeness = DrawConfig.likeness,
        strength: float = 1.0,
        progress: OnProgress | None = None,
    ) -> list[Image.Image]:
        """Draw people: `count` pictures of each pair of a person and a prompt, pair after pair.

        Args:
            people: one or N persons; None is nobody, the base as it is.
            prompts: one or N; one person or one prompt goes with all of the others.
            count: pictures of each pair. The k-th starts from the noise of seed + k, whatever else is drawn with it.
            seed: of the noise.
            steps: of the sampler.
            guidance: towards the prompt, classifier-free, off at 1 or less.
            likeness: towards the person, by default as suits how they were made; None draws as other programs draw an
                export: see `DrawConfig.of` and `DrawConfig.answers`.
            strength: factor of the person's dW: 0 is the base, 1 the person.
            progress: called at every step of the sampler.

        Raises:
            UserError: N people and M prompts. WrongBase, WrongSpace: an identity of another base or space.
        """
        config = DrawConfig(count, seed, steps, guidance, likeness, strength)
        return [to_image(picture) for picture in self.draw(people, prompts, config, progress)]

    def draw(
        self,
        people: Subject | Sequence[Subject],
        prompts: str | Sequence[str],
        config: DrawConfig | None = None,
        progress: OnProgress | None = None,
    ) -> Tensor:
        """The pictures of `generate` as one tensor (pairs * count, 3, H, W), float32 in [0, 1], on the CPU."""
        persons, texts = pair(people, prompts)
        for person in {id(person): person for person in persons}.values():  # who is drawn for many prompts, once
            check_person(person, self.base, self.fingerprint, self.space)
            note_other_word(person, self.base)
        for text in dict.fromkeys(texts):
            of_somebody = any(
                person is not None and not named_in(text, person)
                for person, own in zip(persons, texts, strict=True)
                if own == text
            )
            note_faults(self.base, text, of_somebody)
        return draw(self.base, self.adapters, persons, texts, config or DrawConfig(), progress)


def space_of(base: Base) -> LiDBSpace:
    """The weight space that a base's card names, over the layers that the base has.

    The sites of the 192-layer rule, and then those of the residual blocks that hold such bases.
    """
    card, rule = base.card, find_sites(**base.adapted)
    blocks = [site for site in find_blocks(base.unet) if card.a < site.n_in and card.b < site.n_out]
    return LiDBSpace((*rule, *blocks), card.a, card.b, card.seed, card.scale, rule_sites=len(rule))


def _load_hypernetwork(booth: HyperDreamBooth, choice: str | Path | None) -> HyperNetwork | None:
    """The hypernetwork that is asked for, the embedded one only where it fits; on the base's device, or on the CPU
    where the base waits there.
    """
    if choice is None or (choice == "embedded" and not HYPERNETWORK.is_file()):
        return None
    path = HYPERNETWORK if choice == "embedded" else Path(choice)
    if path.is_dir():
        path = path / RESULT_FILE
    try:
        network = HyperNetwork.load(path, booth.space, booth.fingerprint, booth.base.name)
    except (WrongBase, WrongSpace):
        if choice == "embedded":
            return None
        raise
    there: HyperNetwork = network if booth.base.home else network.to(booth.base.device)
    return there
