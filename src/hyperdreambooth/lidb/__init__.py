"""LiDB, the weight space of persons (eq. 1): sites, frozen bases, adapters and exports. Knows torch, not diffusion."""

from hyperdreambooth.lidb.basis import BASIS_VERSION, basis, check_value
from hyperdreambooth.lidb.export import About, save_diffusers, save_kohya, save_peft, to_lora
from hyperdreambooth.lidb.injection import Adapters, inject
from hyperdreambooth.lidb.linear import LiDBConv2d, LiDBLinear
from hyperdreambooth.lidb.lora import LoRALayout, combine_lora
from hyperdreambooth.lidb.reading import ReadLoRA, read_lora
from hyperdreambooth.lidb.sites import Site, find_blocks, find_sites
from hyperdreambooth.lidb.space import LiDBSpace, SpaceInfo

__all__ = [
    "BASIS_VERSION",
    "About",
    "Adapters",
    "LiDBConv2d",
    "LiDBLinear",
    "LiDBSpace",
    "LoRALayout",
    "ReadLoRA",
    "Site",
    "SpaceInfo",
    "basis",
    "check_value",
    "combine_lora",
    "find_blocks",
    "find_sites",
    "inject",
    "read_lora",
    "save_diffusers",
    "save_kohya",
    "save_peft",
    "to_lora",
]
