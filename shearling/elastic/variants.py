"""The `variants` artefact: the linear layers of the pruned model again, with more zeros, one directory for each ratio.

A variant is pruned from the one before it, the first from the pruned model that adapters are trained on, so that masks
are nested: what a layer keeps at a higher ratio, it keeps at every lower one, and was trained. Only the weights of
pruned layers are stored; a sub-network may take each layer from another variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pydantic

from shearling.artefact import Artefact, open_artefact
from shearling.errors import ArtefactMismatch, UsageError
from shearling.strict_json import Document, read_document

VARIANTS_FILE = "variants.json"
VARIANTS_SCHEMA = "shearling.variants/1"


class Variant(Document):
    """All layers at one ratio.

    Attributes:
        percent: the ratio, in hundredths; the name of its directory.
        layers: pruned share of each layer.
        zeros: pruned weights.
    """

    percent: int = pydantic.Field(ge=1, lt=100)
    layers: tuple[float, ...] = pydantic.Field(min_length=1)
    zeros: int


class VariantsDocument(Document):
    """The content of `variants.json`.

    Attributes:
        method: how weights were scored.
        modules: names of the pruned modules of a layer.
        trained: pruned share of each layer of the model that adapters are trained on.
        variants: ratios ascend.
    """

    schema_: Literal["shearling.variants/1"] = pydantic.Field("shearling.variants/1", alias="schema")
    method: str
    modules: tuple[str, ...] = pydantic.Field(min_length=1)
    trained: tuple[float, ...] = pydantic.Field(min_length=1)
    variants: tuple[Variant, ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> VariantsDocument:
        percents = [variant.percent for variant in self.variants]
        if percents != sorted(set(percents)):
            raise ValueError("the ratios must ascend")
        if any(len(variant.layers) != len(self.trained) for variant in self.variants):
            raise ValueError("a variant has another number of layers")
        return self

    @property
    def trained_percents(self) -> tuple[int, ...]:
        """Of each layer the share of zeros that it was trained at."""
        return tuple(round(100 * share) for share in self.trained)

    def percents_of(self, wanted: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Of each layer the shares it may have: the one that it was trained at, and those of `wanted` above it.

        Raises:
            UsageError: there is no variant of a ratio, or no layer can take it.
        """
        known = [variant.percent for variant in self.variants]
        for percent in wanted:
            if percent in self.trained_percents:
                continue
            if percent not in known:
                shares = ", ".join(f"{each / 100:g}" for each in sorted({*self.trained_percents, *known}))
                raise UsageError(
                    f"no layer was pruned to {percent / 100:g}",
                    where="--ratios",
                    remedy=f"Choose among {shares}, or give [variants] other ratios and train again",
                )
            if all(percent <= trained for trained in self.trained_percents):
                raise UsageError(
                    f"no layer can take {percent / 100:g}: all were trained with more zeros",
                    where="--ratios",
                    remedy="Leave it out: what training never saw is not brought back",
                )
        return tuple(
            (trained, *(percent for percent in known if percent in wanted and percent > trained))
            for trained in self.trained_percents
        )


def variant_directory(variants: Path, percent: int) -> Path:
    """Where the weights and the mask of a variant are."""
    return variants / str(percent)


def open_variants(path: Path, *, sparse: Artefact) -> tuple[Artefact, VariantsDocument]:
    """Open the variants of a pruned model.

    Raises:
        ArtefactError: they are missing or damaged, or were made of another model.
    """
    artefact = open_artefact(path, kind="variants")
    if artefact.manifest.parents.get("sparse") != sparse.sha256:
        raise ArtefactMismatch(
            "the variants were made of another pruned model",
            where=path,
            remedy="Put back the one that they belong to, or make them again",
        )
    return artefact, read_document(path / VARIANTS_FILE, VariantsDocument, schema=VARIANTS_SCHEMA)
