"""[quantization]: the grid of integers that the model is trained on."""

from __future__ import annotations

from typing import Literal

import pydantic

from shearling.recipe.calibration import CalibrationSection
from shearling.recipe.section import Section

GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64
"""Where the recipe has none; half of it and so on where that does not divide a layer's inputs."""


class QuantizationSection(Section):
    """The frozen model is rounded before training, and a masked adapter trains on its grid: the sub-adapter then merges
    into integers exactly.
    """

    bits: Literal[4, 8] = pydantic.Field(4, description="of a weight; 8 has one scale a row")
    group_size: Literal[32, 64, 128] | None = pydantic.Field(
        None,
        description="columns that share a scale in 4 bits, dividing the inputs of every layer; without it 64, and less "
        "where a layer is narrow",
    )
    calibration: CalibrationSection = CalibrationSection(samples=64, seq_len=128)

    @pydantic.model_validator(mode="after")
    def _groups(self) -> QuantizationSection:
        if self.bits == 8 and self.group_size is not None:
            raise ValueError("8 bits have one scale a row: leave group_size out")
        return self
