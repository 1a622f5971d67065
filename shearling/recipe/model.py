"""[model]: the pretrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from shearling.recipe.section import PackageAsset, Section

LICENSE_ID = "[a-z0-9][a-z0-9.-]*"
"""How the Hugging Face hub writes the name of a licence: apache-2.0, cc-by-nc-4.0, llama3.2, other."""


class AdaptationSection(Section):
    """The dense model is adapted to the task before anything is pruned: LoRA of the largest rank, merged. What this
    does not say, [adapter] and [train] say.
    """

    steps: int | None = pydantic.Field(None, ge=1, description="optimiser steps; absent: as long as [train]")


class ModelSection(Section):
    """The pretrained model: a Hugging Face directory or a GGUF file."""

    path: Path | None = pydantic.Field(None, description="relative to the recipe")
    asset: PackageAsset | None = None
    model_id: str = pydantic.Field(description="its public name, for the model card")
    license: str | None = pydantic.Field(
        None,
        pattern=f"^{LICENSE_ID}$",
        description="of the model, by the hub's name for it, for the model card; absent: what its own files say",
    )
    head: Literal["language_model", "classifier"] = pydantic.Field(
        "language_model",
        description="classifier: an encoder or a decoder gets a new head with one class for each of the task's choices",
    )
    adaptation: AdaptationSection | None = None

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        if (self.path is None) == (self.asset is None):
            raise ValueError("give exactly one of 'path' and 'asset'")
        return self
