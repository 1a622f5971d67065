"""The text that a pretrained model is shown to find out what its weights do."""

from __future__ import annotations

from pathlib import Path

import pydantic

from shearling.recipe.section import PackageAsset, Section


class CalibrationSection(Section):
    """The text that activations are measured on."""

    samples: int = pydantic.Field(128, ge=1)
    seq_len: int = pydantic.Field(512, ge=8, description="tokens of a sample")
    path: Path | None = pydantic.Field(
        None, description="a text file, relative to the recipe; without path and asset: training rows of the task"
    )
    asset: PackageAsset | None = None
    field: str | None = pydantic.Field(None, description="the file is JSONL, and this key of a line is its text")
    task_rows: bool = pydantic.Field(
        False, description="every second window comes from the training rows, beside those of the file"
    )

    @property
    def names_file(self) -> bool:
        """Whether there is a text beside the task's."""
        return self.path is not None or self.asset is not None

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> CalibrationSection:
        if self.path is not None and self.asset is not None:
            raise ValueError("give either 'path' or 'asset'")
        if not self.names_file and (self.field is not None or self.task_rows):
            raise ValueError("'field' and 'task_rows' belong to a file: give 'path' or 'asset'")
        return self
