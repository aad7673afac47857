"""Fetch a base by its hub id: only configurations, vocabularies and safetensors, into the hub client's own cache."""

from __future__ import annotations

from pathlib import Path

from hyperdreambooth.base.folder import NETWORKS, VARIANT, files_of
from hyperdreambooth.base.model import CARD_FILE
from hyperdreambooth.errors import BadBase
from hyperdreambooth.hub import download

_DESCRIPTIONS = [
    "model_index.json",
    CARD_FILE,
    "scheduler/*.json",
    *(f"tokenizer{number}/*.{kind}" for number in ("", "_2") for kind in ("json", "txt")),
    *(f"{part}/config.json" for part in NETWORKS),
]


def fetch(name: str) -> Path:
    """The folder of a base of the hub, "org/name" or "org/name@revision", fetched where it is not in the cache.

    A repository that holds nothing but half-precision files is taken in those. Raises as `download`, BadBase for a name
    that leads to no base, or to one of pickled files alone.
    """
    plain = [
        pattern
        for part, (_, stem, _) in NETWORKS.items()
        for pattern in (
            f"{part}/{stem}.safetensors",
            f"{part}/{stem}.safetensors.index.json",
            f"{part}/{stem}-?????-of-?????.safetensors",
        )
    ]
    folder = download(name, _DESCRIPTIONS + plain, BadBase)
    if lacking := _lacking(folder):
        stems = [f"{part}/{NETWORKS[part][1]}" for part in lacking]
        ends = (f"{VARIANT}*.safetensors", f"safetensors.index.{VARIANT}.json")
        download(name, [f"{stem}.{end}" for stem in stems for end in ends], BadBase)
    if lacking := _lacking(folder):
        raise BadBase(
            f"{name} came with no safetensors of its {lacking[0]} (pickled files are never fetched), expected "
            f"{lacking[0]}/{NETWORKS[lacking[0]][1]}.safetensors: give a base or a revision that has them"
        )
    return folder


def _lacking(folder: Path) -> list[str]:
    """The networks that a folder describes and has no weights of."""
    return [part for part in NETWORKS if (folder / part / "config.json").is_file() and not files_of(folder, part)]
