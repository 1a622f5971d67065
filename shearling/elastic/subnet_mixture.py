"""The part of `best.json` that speaks of layers which chose their zeros and their formats."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import pydantic

from shearling.artefact import Artefact
from shearling.elastic.mixture import BITS, LayerFormat, Mixture, open_mixture, percents_of_ratios
from shearling.elastic.search_space import FORMAT_GROUP, SPARSITY_GROUP, Choice, SearchSpace
from shearling.errors import ArtefactMismatch, DocumentInvalid, UsageError
from shearling.strict_json import Document

Sha256 = Annotated[str, pydantic.StringConstraints(pattern="^[0-9a-f]{64}$")]


class VariantsReference(Document):
    """The variants that layers are taken from."""

    path: str
    manifest_sha256: Sha256


class ChosenLayer(Document):
    """What was chosen for one layer; None leaves it as it was trained, or to the export."""

    sparsity: float | None
    weight_format: LayerFormat | None


class MixtureReference(Document):
    """What layers chose among, and what each has.

    Attributes:
        variants: None where every layer has the zeros that it was trained with.
        ratios: that layers could take, beside the share that each was trained at.
        weight_formats: that layers could take; empty where the export decides.
        layers: by layer.
    """

    variants: VariantsReference | None
    ratios: tuple[float, ...]
    weight_formats: tuple[LayerFormat, ...]
    layers: tuple[ChosenLayer, ...]

    @property
    def words(self) -> list[str]:
        """How many layers chose which zeros, and which formats; a line each, where there was a choice."""
        zeros = Counter(f"{layer.sparsity:.0%}" for layer in self.layers if layer.sparsity is not None)
        formats = Counter(layer.weight_format for layer in self.layers if layer.weight_format is not None)
        return [
            f"layers chose {what}: {', '.join(f'{count} of {value}' for value, count in sorted(chosen.items()))}"
            for what, chosen in (("zeros", zeros), ("formats", formats))
            if chosen
        ]


def describe_mixture(mixture: Mixture, choice: Choice, location: Path) -> MixtureReference:
    """What layers chose among, and what each has.

    Args:
        mixture: that they chose among.
        choice: of its space.
        location: the directory that the document will stand in.
    """
    variants, found = mixture.variants, None
    if variants is not None:
        path = Path(os.path.relpath(variants.path.resolve(), location.resolve())).as_posix()
        found = VariantsReference(path=path, manifest_sha256=variants.sha256)
    return MixtureReference(
        variants=found,
        ratios=tuple(percent / 100 for percent in mixture.percents),
        weight_formats=mixture.formats,
        layers=_chosen_layers(mixture, choice),
    )


def _chosen_layers(mixture: Mixture, choice: Choice) -> tuple[ChosenLayer, ...]:
    names: dict[int, LayerFormat] = {bits: name for name, bits in BITS.items()}
    chosen = []
    for layer in range(mixture.space.num_layers):
        percent, bits = (choice.get(f"layers.{layer}.{group}") for group in (SPARSITY_GROUP, FORMAT_GROUP))
        chosen.append(
            ChosenLayer(
                sparsity=None if percent is None else percent / 100,
                weight_format=None if bits is None else names[bits],
            )
        )
    return tuple(chosen)


def reopen_mixture(reference: MixtureReference, space: SearchSpace, frozen: Artefact, *, where: Path) -> Mixture:
    """Find what a document names, and verify it.

    Args:
        reference: of the document.
        space: of the adapter.
        frozen: the model under it.
        where: the document; its paths are relative to it.

    Raises:
        DocumentInvalid: its parts contradict each other or the run.
        ArtefactMismatch: the variants are others.
        ArtefactError: they are missing or damaged.
    """
    try:
        percents = percents_of_ratios(reference.ratios)
        mixture = open_mixture(space, frozen, percents=percents, formats=reference.weight_formats)
    except UsageError as error:
        # What a search was asked for stands in a file here.
        raise DocumentInvalid(f"mixture: {error.message}", where=where) from None
    if (mixture.variants is None) != (reference.variants is None):
        raise DocumentInvalid("mixture.variants and mixture.ratios contradict each other", where=where)
    if mixture.variants is not None and reference.variants is not None:
        if (where.resolve().parent / reference.variants.path).resolve() != mixture.variants.path.resolve():
            raise DocumentInvalid(f"mixture.variants.path is not {mixture.variants.path}", where=where)
        if mixture.variants.sha256 != reference.variants.manifest_sha256:
            raise ArtefactMismatch(
                "the manifest of the variants differs",
                where=where,
                remedy="This sub-network was searched on other artefacts: restore them, or search again",
            )
    return mixture


def check_layers(reference: MixtureReference, mixture: Mixture, choice: Choice, *, where: Path) -> None:
    """Check that the layers of a document are those of its choice.

    Raises:
        DocumentInvalid: names the first layer that is another.
    """
    chosen = _chosen_layers(mixture, choice)
    if len(reference.layers) != len(chosen):
        raise DocumentInvalid(f"mixture.layers has {len(reference.layers)} of {len(chosen)} layers", where=where)
    for layer, (stated, found) in enumerate(zip(reference.layers, chosen, strict=True)):
        if stated != found:
            raise DocumentInvalid(
                f"mixture.layers[{layer}] is {stated.model_dump()}, the choice gives {found.model_dump()}", where=where
            )
