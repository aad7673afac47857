"""HyperDreamBooth: one photograph to a personalised text-to-image model in seconds and 100 to 200 KB.

The public names; each is imported when it is first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperdreambooth.drawing import DrawConfig
    from hyperdreambooth.errors import HyperDreamBoothError, UserError, WorkError
    from hyperdreambooth.identity import Identity, average, mix
    from hyperdreambooth.personalization import Personalization, PersonalizeConfig
    from hyperdreambooth.pipeline import HyperDreamBooth
    from hyperdreambooth.progress import Progress

_HOMES = {
    "DrawConfig": "drawing",
    "HyperDreamBooth": "pipeline",
    "HyperDreamBoothError": "errors",
    "Identity": "identity",
    "Personalization": "personalization",
    "PersonalizeConfig": "personalization",
    "Progress": "progress",
    "UserError": "errors",
    "WorkError": "errors",
    "average": "identity",
    "mix": "identity",
}

__all__ = [
    "DrawConfig",
    "HyperDreamBooth",
    "HyperDreamBoothError",
    "Identity",
    "Personalization",
    "PersonalizeConfig",
    "Progress",
    "UserError",
    "WorkError",
    "average",
    "mix",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
