"""[width]: which sides of the frozen model are elastic."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from shearling.recipe.calibration import CalibrationSection
from shearling.recipe.section import Section, require_unique

Width = Annotated[int, pydantic.Field(ge=1, strict=True)]


class WidthGroupSection(Section):
    """One elastic width of every layer; which modules it stands between is found from the structure of the model."""

    name: str = pydantic.Field(pattern="^[A-Za-z0-9_]+$")
    part: Literal["feed_forward", "attention"]
    widths: tuple[Width, ...] | tuple[tuple[Width, ...], ...] = pydantic.Field(
        min_length=1,
        description="descending, the full width first; one list, or one for each layer. Attention: "
        "whole key-value heads",
    )


class WidthSection(Section):
    """Elastic widths of the frozen model (LoNAS); what is chosen is exported physically narrower."""

    groups: tuple[WidthGroupSection, ...] = pydantic.Field(min_length=1)
    reorder: Literal["none", "l1", "wanda"] = pydantic.Field(
        "none", description="sort channels by importance once, before training"
    )
    calibration: CalibrationSection = CalibrationSection(samples=32, seq_len=128)

    @pydantic.model_validator(mode="after")
    def _names(self) -> WidthSection:
        require_unique([group.name for group in self.groups])
        return self
