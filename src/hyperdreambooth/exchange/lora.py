"""A LoRA that other programs made, to an identity: in full space as it is, or projected into the LiDB bases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from hyperdreambooth.errors import UserError, WrongBase
from hyperdreambooth.exchange.cards import FINGERPRINT, PROMPT
from hyperdreambooth.identity import Identity
from hyperdreambooth.lidb import LiDBSpace, LoRALayout, ReadLoRA, read_lora, to_lora
from hyperdreambooth.lidb.lora import squared_distance, squared_norm
from hyperdreambooth.pipeline import HyperDreamBooth
from hyperdreambooth.progress import Progress

IMPORT = "import"
_LONGEST_PROMPT = 200  # characters


@dataclass(frozen=True)
class Imported:
    """An identity from a LoRA, and what did not come along.

    Attributes:
        identity: the person.
        read: what the file held.
        lost: ||dW - dW'||^2 / ||dW||^2 of each site by name, dW the file's change and dW' the person's.
        lost_in_all: the same over all sites; layers that were left out do not count.
    """

    identity: Identity
    read: ReadLoRA
    lost: Mapping[str, float]
    lost_in_all: float


def import_lora(
    booth: HyperDreamBooth,
    path: str | Path,
    *,
    project: bool = False,
    ranks: int | None = None,
    partial: bool = False,
    prompt: str | None = None,
) -> Imported:
    """An identity that changes the base as a LoRA does.

    Args:
        booth: whose base the LoRA is for.
        path: a file in kohya's or diffusers' layout, or a folder of diffusers or PEFT.
        project: into the LiDB bases, instead of keeping the factors in full space.
        ranks: of the projection; None is the LoRA's own rank.
        partial: leave out layers that a person here does not change, instead of refusing the file.
        prompt: that the person answers to; None is what the file says, or "a [V] face".

    Raises:
        BadFile, WrongBase, UserError: as `read_lora`. WrongBase: one of our own exports, for another base. UserError:
            ranks without a projection.
    """
    if ranks is not None and not project:
        raise UserError(f"got {ranks} ranks without a projection, expected both: give --project too")
    space, base = booth.space, booth.base
    read = read_lora(path, space.sites, partial)
    if not any(up.any() for _, up in read.factors[len(space.rule.sites) :]):  # what most LoRAs leave alone
        space, read = space.rule, replace(read, factors=read.factors[: len(space.rule.sites)])
    made_for = read.metadata.get(FINGERPRINT, booth.fingerprint)
    if made_for != booth.fingerprint:
        name = read.metadata.get("ss_sd_model_name", "another")
        raise WrongBase.of(path, made_for, name, booth.fingerprint, base.name)
    lora: Tensor | None
    if project:
        weights, lora = space.project(read.factors, ranks or read.rank), None
        kept = to_lora(space, weights)
    else:
        weights, lora = space.start(), LoRALayout(space.sites, read.rank).pack(read.factors)
        kept = read.factors
    apart = [float(squared_distance(theirs, ours)) for theirs, ours in zip(read.factors, kept, strict=True)]
    whole = [float(squared_norm(*factors)) for factors in read.factors]
    lost = {site.name: _share(*one) for site, *one in zip(space.sites, apart, whole, strict=True)}
    in_all = _share(sum(apart), sum(whole))
    how: dict[str, str | int | float] = {
        "method": "import",
        "file": Path(path).name[:80],
        "rank": read.rank,
        "lost": round(in_all, 4),
    }
    if read.left_out:
        how["left out"] = round(sum(read.left_out.values()), 4)
    identity = Identity(
        weights,
        space.info,
        booth.fingerprint,
        base.name,
        prompt=_prompt(read.metadata) if prompt is None else prompt,
        rare_token=base.rare_token,
        class_noun=base.class_noun,
        how=how,
        lora=lora,
    )
    identity.check_description()
    return Imported(identity, read, lost, in_all)


@dataclass(frozen=True)
class ImportedPeople:
    """People from a folder of LoRAs, and the share of each one's change that did not come along, by name."""

    names: tuple[str, ...]
    weights: Tensor  # (N, S, 1, a + b)
    space: LiDBSpace
    lost: Mapping[str, float]


def import_people(
    booth: HyperDreamBooth, folder: Path, partial: bool = False, progress: Callable[[Progress], None] = lambda _: None
) -> ImportedPeople:
    """Everybody of a folder of LoRAs, one of each person, each projected to one rank in the LiDB bases.

    A hypernetwork can learn from them as from pre-optimised people: `fitting.preoptimize.write_people`.

    Raises:
        UserError: no LoRAs there. Others: as `import_lora`.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors, expected a LoRA of each person: give a folder of such files")
    found = dict[str, Imported]()
    for done, file in enumerate(files):
        progress(Progress(IMPORT, done, len(files)))
        found[file.stem] = import_lora(booth, file, project=True, ranks=1, partial=partial)
    everybody = [one.identity.weights for one in found.values()]
    space = booth.space.of(*everybody)
    weights = space.start().repeat(len(everybody), 1, 1, 1)  # a site that a LoRA leaves alone stays at the start
    for row, own in zip(weights, everybody, strict=True):
        row[: len(own)] = own
    return ImportedPeople(tuple(found), weights, space, {name: one.lost_in_all for name, one in found.items()})


def _share(apart: float, whole: float) -> float:
    return apart / whole if whole else 0.0


def _prompt(metadata: Mapping[str, str]) -> str:
    """What a file says that its person answers to, ours or anybody's."""
    said = metadata.get(PROMPT) or metadata.get("modelspec.trigger_phrase") or "a [V] face"
    return said[:_LONGEST_PROMPT]
