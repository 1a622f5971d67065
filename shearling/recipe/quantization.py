"""[quantization]: the grid of integers that the model is trained on."""

from __future__ import annotations

from typing import Literal

import pydantic

from shearling.recipe.calibration import CalibrationSection
from shearling.recipe.section import Section


class QuantizationSection(Section):
    """The frozen model is rounded before training, and a masked adapter trains on its grid: the sub-adapter then merges
    into integers exactly.
    """

    bits: Literal[4, 8] = pydantic.Field(4, description="of a weight; 8 has one scale a row")
    group_size: Literal[32, 64, 128] = pydantic.Field(
        64, description="columns that share a scale in 4 bits; less where a layer is narrow"
    )
    calibration: CalibrationSection = CalibrationSection(samples=64, seq_len=128)

    @pydantic.model_validator(mode="after")
    def _groups(self) -> QuantizationSection:
        if self.bits == 8 and "group_size" in self.model_fields_set:
            raise ValueError("8 bits have one scale a row: leave group_size out")
        return self
