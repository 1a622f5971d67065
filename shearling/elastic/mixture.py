"""Which shares of zeros and which number formats the layers of a run may choose among, and the weights of each.

The adapters are trained under the mask with the fewest zeros. At a higher ratio a layer takes the variant's weight and
the variant's mask, W_v + (s B A) ∘ M_v: its mask lies inside the trained one, so that no weight comes back that
training never saw, and every zero of the variant stays. Where a format is chosen, the merged weight is rounded to it.
Search and export make the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shearling.artefact import Artefact
from shearling.elastic.mask import MASK_FILE, load_masks
from shearling.elastic.reordering import Reordering, group_channels
from shearling.elastic.search_space import SearchSpace
from shearling.elastic.variants import open_variants, variant_directory
from shearling.errors import ArtefactMismatch, ArtefactMissing, ModelUnsupported, UsageError
from shearling.model.skeleton import open_skeleton
from shearling.model.weight_shards import StoredWeights
from shearling.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from shearling.elastic.mask import Masks

LayerFormat = Literal["int8", "int4"]

BITS: Mapping[LayerFormat, int] = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Mixture:
    """What layers choose among.

    Attributes:
        space: of the adapter, with the groups of the choices.
        variants: None where every layer keeps the zeros that it was trained with.
        percents: that were asked for.
        formats: those on offer, the finest first; empty where the export decides.
    """

    space: SearchSpace
    variants: Artefact | None
    percents: tuple[int, ...]
    formats: tuple[LayerFormat, ...]


def percents_of_ratios(ratios: Iterable[float]) -> tuple[int, ...]:
    """Shares of zeros, 0 to 1, in whole percent, ascending.

    Raises:
        UsageError: one is no such share, or stands between two percents.
    """
    found = set()
    for ratio in ratios:
        if not 0 < ratio < 1 or abs(100 * ratio - round(100 * ratio)) > 1e-9:
            raise UsageError(f"{ratio:g} is no share of zeros in whole percent", where="--ratios", remedy="Such as 0.6")
        found.add(round(100 * ratio))
    return tuple(sorted(found))


def open_mixture(
    space: SearchSpace, frozen: Artefact, *, percents: Sequence[int], formats: Sequence[LayerFormat]
) -> Mixture:
    """Extend the space of a run.

    Args:
        space: of its adapter.
        frozen: the model under the adapter, verified.
        percents: shares of zeros beside those of the training; empty leaves these.
        formats: of which each layer takes one; empty leaves them to the export.

    Raises:
        UsageError: a ratio that no layer can take, or a format that this run cannot be exported in.
        ArtefactError: there are no variants, or others.
    """
    run = Run(frozen.path.parent)
    formats = tuple(sorted(set(formats), key=lambda name: -BITS[name]))
    if percents and frozen.manifest.kind != "sparse":
        raise UsageError(
            "layers choose among shares of zeros, and this model is dense",
            where="--ratios",
            remedy="Leave the option out, or train with [sparsity] and [variants]",
        )
    if space.adapter.grid is not None:
        bits = space.adapter.grid.bits
        raise UsageError(
            f"every layer was trained on integers of {bits} bits, at its own zeros: there is nothing to choose",
            where="--layer-formats" if formats else "--ratios",
            remedy="Leave the option out, or train without [quantization]",
        )
    if formats and frozen.manifest.kind == "sparse" and not space.adapter.masked_training:
        raise UsageError(
            "the ranks of this run stay beside its weights, and cannot be exported in integers with them",
            where="--layer-formats",
            remedy="Leave the option out, or train with masked = true",
        )
    if not percents:
        modules = _linear_names(frozen)
        mixed = space.mixed(modules, percents=None, bits=tuple(BITS[name] for name in formats))
        return Mixture(mixed, None, (), formats)
    if not run.variants.exists():
        raise ArtefactMissing(
            "layers choose among variants with more zeros, and this run has none",
            where=run.variants,
            remedy="Give [variants] in the recipe, and make them: python -m train variants --recipe R --output RUN",
        )
    variants, document = open_variants(run.variants, sparse=frozen)
    found = document.percents_of(percents)
    mixed = space.mixed(document.modules, percents=found, bits=tuple(BITS[name] for name in formats))
    return Mixture(mixed, variants, tuple(sorted(percents)), formats)


def _linear_names(frozen: Artefact) -> tuple[str, ...]:
    """Names of the linear modules of a layer."""
    if frozen.manifest.kind == "sparse":
        return tuple(frozen.manifest.details["sparsity"]["scope"])
    skeleton = open_skeleton(frozen.path)
    if skeleton is None:
        raise ModelUnsupported("its layers are not stored one by one", where=frozen.path)
    return tuple(skeleton.transformer.linear_names)


class LayerVariants:
    """The weights and masks that layers may have, read when they are asked for.

    Args:
        sparse: the model that the adapter was trained on.
        variants: of it.
        space: with the choice of a share of zeros.
        reordering: of the channels of the super-network; None where they are as they were.
    """

    def __init__(
        self, sparse: Artefact, variants: Artefact, space: SearchSpace, reordering: Reordering | None = None
    ) -> None:
        self._trained = {
            path: group.values[0] for group in space.groups if group.kind == "sparsity" for path in group.modules
        }
        self._directories = {0: sparse.path}
        for percent in {value for group in space.groups if group.kind == "sparsity" for value in group.values[1:]}:
            self._directories[percent] = variant_directory(variants.path, percent)
        self._weights = {percent: StoredWeights(path) for percent, path in self._directories.items()}
        self._masks: dict[int, Masks] = {}
        self._moves: dict[str, list[tuple[int, Tensor]]] = {}
        if reordering is not None:
            for group in space.width_groups:
                for path, axis, channels in group_channels(group, reordering.orders[group.id]):
                    self._moves.setdefault(path, []).append((axis, channels))

    def offers(self, path: str) -> bool:
        """Whether a layer has the choice."""
        return path in self._trained

    def weight(self, path: str, percent: int) -> Tensor:
        """[out, in] as it is stored, a view of a file unless its channels were moved.

        Raises:
            ModelUnsupported: the model's files name their tensors otherwise than the model.
        """
        stored, name = self._weights[self._place(path, percent)], f"{path}.weight"
        if name not in stored.tensors:
            raise ModelUnsupported("the files of the model have no tensor of this name", where=name)
        return self._moved(path, stored.read(name))

    def mask(self, path: str, percent: int) -> Tensor:
        """[out, in] bool.

        Raises:
            ArtefactMismatch: the variant prunes other modules.
        """
        place = self._place(path, percent)
        if place not in self._masks:
            self._masks[place] = load_masks(self._directories[place] / MASK_FILE)
        if path not in self._masks[place]:
            raise ArtefactMismatch("there is no mask of this module", where=f"{self._directories[place]}: {path}")
        return self._moved(path, self._masks[place][path])

    def _place(self, path: str, percent: int) -> int:
        return 0 if percent == self._trained[path] else percent

    def _moved(self, path: str, tensor: Tensor) -> Tensor:
        for axis, channels in self._moves.get(path, ()):
            tensor = tensor.index_select(axis, channels)
        return tensor
