"""Put persons on a model and take them off: inject, use, merge and their exact inverses, the one door for them all."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hyperdreambooth.errors import UserError
from hyperdreambooth.lidb.bases import Bases
from hyperdreambooth.lidb.linear import LiDBConv2d, LiDBLinear, Worn, merged, together, trimmed
from hyperdreambooth.lidb.lora import LoRALayout
from hyperdreambooth.lidb.sites import Site, fusable, refuse_fused, total_width
from hyperdreambooth.lidb.space import LiDBSpace

Outfit: TypeAlias = list[Worn]
"""What each adapted layer wears, in the order of the sites."""


@dataclass(frozen=True)
class _Place:
    """Where one adapted layer stands and which layer stood there before."""

    parent: nn.Module
    child: str
    original: nn.Linear | nn.Conv2d
    adapted: LiDBLinear | LiDBConv2d


def inject(models: Mapping[str, nn.Module], space: LiDBSpace) -> "Adapters":
    """Replace the space's layers in the models by LiDBLinear and LiDBConv2d; no key and no number changes.

    Args:
        models: {"unet": ..., "text_encoder": ..., "text_encoder_2": ...}, those that the space's sites name.
        space: the weight space; its order of sites is the order of the persons' packed numbers.

    Raises:
        UserError: a site is missing, is not a plain layer of its size, is injected already, or is fused.
    """
    for model in models.values():
        refuse_fused(fusable(model))
    found = [_plain_layer(models, space, index) for index in range(len(space.sites))]
    places = []
    for parent, child, original in found:
        kind: Any = LiDBConv2d if isinstance(original, nn.Conv2d) else LiDBLinear
        adapted = kind(original)
        setattr(parent, child, adapted)
        places.append(_Place(parent, child, original, adapted))
    return Adapters(models, space, places)


class Adapters:
    """The adapted layers of injected models. Made by ``inject``.

    Attributes:
        space: of all sites; people may be of its `rule`'s alone.
        bases: its frozen bases, which go where and to the precision that people are worn in.

    What is worn is state of the models, so one thread at a time wears, merges or takes off; others wait for it.
    """

    def __init__(self, models: Mapping[str, nn.Module], space: LiDBSpace, places: list[_Place]) -> None:
        self.space = space
        self._places = places
        self.bases = Bases(space, places[0].adapted.weight)
        self._attentions = [one for model in models.values() for one in fusable(model)]
        self._unmerged: list[Tensor] | None = None
        self._lock = RLock()

    @property
    def merged(self) -> bool:
        """Whether a person is merged into the models' own weights."""
        return self._unmerged is not None

    def check_bare(self) -> None:
        """Raise UserError unless the models are adapted and show nobody but whom they wear."""
        if self.merged:
            raise UserError(
                "a person is merged into the model and would show in everybody else: call adapters.unmerge() first"
            )
        self._check_injected()

    def _check_injected(self) -> None:
        if not self._places:
            raise UserError("the adapters were ejected from the model, which can wear nobody now: load it anew")

    @contextmanager
    def use(
        self,
        weights: Tensor | None,
        lora: Tensor | None = None,
        *,
        first: int = 0,
        lora_at: slice | None = None,
        under: Sequence[Tensor] | None = None,
        beside: Outfit | None = None,
    ) -> Iterator[None]:
        """Inside, the models draw the persons given, and gradients flow to them; after, what was worn before is back.

        Args:
            weights: packed LiDB numbers of one person (S, R, a + b), or of N persons (N, S, R, a + b), or None; of all
                sites, or of the space's `rule`'s. With N persons a batch of c * N rows is the N persons tiled c
                times.
            lora: full-space factors on the same sites, flat (size,) or (N, size) as in LoRALayout, or None.
            first: number of the first site that `weights` are of, where they are of the last ones alone.
            lora_at: the sites that `lora` is of, where it is not of as many as `weights`.
            under: what `weights_with` made, which all wear in the place of the layers' own weights.
            beside: an `outfit` of as many persons, or of one, that is worn as well.

        Raises:
            UserError: wrong shape, projections that were fused after injection, or spent adapters.
        """
        worn = self._outfit(weights, lora, first, lora_at, under)
        if beside is not None:
            worn = [together(one, other) for one, other in zip(worn, beside, strict=True)]
        with self.wear(worn):
            yield

    def outfit(
        self, weights: Tensor | None, lora: Tensor | None = None, *, under: Sequence[Tensor] | None = None
    ) -> Outfit:
        """What `use` of the same would put on, for whoever wears it many times: composed once, without gradients.

        It is in the precision of the models as they are now, on the device of the numbers given, wherever the models
        wait, or of the models where the numbers are on the CPU.

        Raises:
            UserError: as `use`.
        """
        with torch.no_grad():
            return [trimmed(one) for one in self._outfit(weights, lora, 0, None, under)]

    @contextmanager
    def wear(self, outfit: Outfit) -> Iterator[None]:
        """Inside, the models draw whom an `outfit` is of; after, what was worn before is back."""
        with self._lock:
            before = [place.adapted.worn for place in self._places]
            try:
                self._wear(outfit)
                yield
            finally:
                self._wear(before)

    def merge(self, weights: Tensor, lora: Tensor | None = None) -> None:
        """Add one person's dW to the models' own weights, until ``unmerge``; the originals are kept aside.

        Raises:
            UserError: a person is merged already, or more than one person is given.
        """
        if self.merged:
            raise UserError("a person is merged into the model already: call unmerge() first")
        originals = []
        with torch.no_grad():
            for place, weight in self._weights_with(weights, lora):  # one at a time: all at once are a second model
                originals.append(place.adapted.weight.detach().clone())
                place.adapted.weight.copy_(weight)
        self._unmerged = originals

    def weights_with(self, weights: Tensor, lora: Tensor | None = None) -> list[Tensor]:
        """Each layer's own weight with one person's dW in it, for `use`; the layers stay as they are.

        In half precision, what is small beside a weight is lost in it.

        Raises:
            UserError: more than one person is given.
        """
        return [weight for _, weight in self._weights_with(weights, lora)]

    def _weights_with(self, weights: Tensor, lora: Tensor | None) -> Iterator[tuple[_Place, Tensor]]:
        """`weights_with`, layer by layer."""
        if weights.dim() != 3:
            raise UserError(
                f"got persons of shape {tuple(weights.shape)}, expected one (S, R, a + b): merge one person"
            )
        with self.use(weights, lora), torch.no_grad():
            for place in self._places:
                yield place, merged(place.adapted)

    def unmerge(self) -> None:
        """Bring back the weights from before ``merge``, bit for bit; nothing happens if nothing is merged."""
        with self._lock, torch.no_grad():
            for place, original in zip(self._places, self._unmerged or (), strict=False):
                place.adapted.weight.copy_(original)
            self._unmerged = None

    def eject(self) -> None:
        """Leave the models as before ``inject``: the same modules, keys and bits. The adapters are then spent."""
        self.unmerge()
        for place in self._places:
            place.original.weight, place.original.bias = place.adapted.weight, place.adapted.bias
            place.original.train(place.adapted.training)
            setattr(place.parent, place.child, place.original)
        self._places = []
        self.bases = Bases(replace(self.space, sites=()), torch.empty(0))

    def _outfit(
        self,
        weights: Tensor | None,
        lora: Tensor | None,
        first: int,
        lora_at: slice | None,
        under: Sequence[Tensor] | None,
    ) -> Outfit:
        """What each site wears, as `use` takes it."""
        self._check_injected()
        refuse_fused(self._attentions)
        worn = self._worn(weights, lora, first, lora_at)
        if under is None:
            return worn
        return [one._replace(weight=weight) for one, weight in zip(worn, under, strict=True)]

    def _wear(self, worn: Outfit) -> None:
        for place, one in zip(self._places, worn, strict=True):
            place.adapted.worn = one

    def _worn(self, weights: Tensor | None, lora: Tensor | None, first: int, lora_at: slice | None) -> Outfit:
        """What each site wears, of one or of both kinds, composed where it is worn, in the models' precision."""
        worn = [Worn()] * len(self.space.sites)
        if weights is not None:
            self._check(weights, first)
            composed = self.bases.compose(self._brought(weights), first)
            worn[first : first + weights.shape[-3]] = [Worn(*one) for one in composed]
        if lora is None:
            return worn
        own = self.space if weights is None else self.space.of(weights)
        at = slice(len(own.sites)) if lora_at is None else lora_at
        full = _layout(lora, self.space.sites[at]).split(self._brought(lora))
        worn[at] = [together(Worn(*factors), one) for factors, one in zip(full, worn[at], strict=True)]
        return worn

    def _brought(self, numbers: Tensor) -> Tensor:
        """In the models' precision, where the numbers are, as models may wait on the CPU; from there to the models."""
        weight = self._places[0].adapted.weight
        return numbers.to(weight.device if numbers.device.type == "cpu" else numbers.device, weight.dtype)

    def _check(self, weights: Tensor, first: int) -> None:
        expected = (len(self.space.sites) - first, "R", self.space.width)
        shape = tuple(weights.shape)
        sites = {expected[0]} if first else {expected[0], len(self.space.rule.sites)}
        if weights.dim() not in (3, 4) or shape[-3] not in sites or shape[-1] != self.space.width:
            raise UserError(
                f"got weights of shape {shape}, expected one person (S, R, a + b) = ({expected[0]}, R, {expected[2]}) "
                "or N of them: use weights made in this space"
            )


def _layout(lora: Tensor, sites: tuple[Site, ...]) -> LoRALayout:
    """How full-space factors on these sites lie in a flat tensor."""
    rank, rest = divmod(lora.shape[-1], total_width(sites))
    if rest or not rank or lora.dim() > 2:
        raise UserError(
            f"got LoRA factors of shape {tuple(lora.shape)}, expected r * {total_width(sites)} numbers, "
            "for one person or N: use factors made on these sites"
        )
    return LoRALayout(sites, rank)


def _plain_layer(
    models: Mapping[str, nn.Module], space: LiDBSpace, index: int
) -> tuple[nn.Module, str, nn.Linear | nn.Conv2d]:
    """The plain layer of one site, with its parent and its name there."""
    site = space.sites[index]
    if site.model not in models:
        raise UserError(f"{site.name} lies in the {site.model}, which was not given: inject every model of the space")
    parent_path, _, child = site.path.rpartition(".")
    try:
        parent = models[site.model].get_submodule(parent_path)
        layer = parent.get_submodule(child)
    except AttributeError as error:
        raise UserError(f"{site.name} is not in the model: find the sites on the model that is injected") from error
    if isinstance(layer, LiDBLinear | LiDBConv2d):
        raise UserError(f"{site.name} is injected already: eject those adapters first")
    if not (_is_linear if site.kernel == 0 else _is_convolution)(layer, site):
        kind = "Conv2d" if site.kernel else "Linear"
        raise UserError(
            f"{site.name} is {layer}, expected a plain {kind} of {site.n_in} inputs and {site.n_out} outputs"
        )
    return parent, child, layer


def _is_linear(layer: nn.Module, site: Site) -> bool:
    return type(layer) is nn.Linear and (layer.in_features, layer.out_features) == (site.n_in, site.n_out)


def _is_convolution(layer: nn.Module, site: Site) -> bool:
    if type(layer) is not nn.Conv2d or layer.groups != 1 or layer.padding_mode != "zeros":
        return False
    sizes = (layer.kernel_size, layer.in_channels * site.kernel**2, layer.out_channels)
    return bool(sizes == ((site.kernel, site.kernel), site.n_in, site.n_out))
