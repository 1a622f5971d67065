"""[sparsity]: what is pruned, on which text, and how it is repaired."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from shearling.recipe.calibration import CalibrationSection
from shearling.recipe.section import Section
from shearling.registry.pruning_methods import PRUNING_METHODS
from shearling.registry.pruning_patterns import PRUNING_PATTERNS
from shearling.registry.registry import NameIn


class ReconstructionSection(Section):
    """How the weights that stay make up for those that went, before the next layer is pruned; in this order."""

    swaps: int = pydantic.Field(
        0, ge=0, description="most exchanges of a kept weight for a pruned one, a row, where the layer's error falls"
    )
    matrix_steps: int = pydantic.Field(
        15, ge=0, description="conjugate-gradient steps of each matrix towards its dense outputs"
    )
    layer_epochs: int = pydantic.Field(
        0, ge=0, description="passes over the calibration text that tune the kept weights of a whole layer"
    )
    learning_rate: float = pydantic.Field(
        2e-3, gt=0, description="of that tuning, as a share of a matrix's root mean square"
    )


class HealingSection(Section):
    """Tuning of all kept weights together, on the calibration text, until they predict what the dense model does."""

    steps: int = pydantic.Field(100, ge=1)
    batch_size: int = pydantic.Field(8, ge=1, description="windows of seq_len tokens a step")
    seq_len: int = pydantic.Field(64, ge=8, description="tokens of a window")
    learning_rate: float = pydantic.Field(2e-3, gt=0, description="as a share of a matrix's root mean square")


class SparsitySection(Section):
    """How the base is pruned."""

    method: Annotated[str, NameIn(PRUNING_METHODS)] = "wanda"
    ratio: float = pydantic.Field(
        0.5, ge=0, lt=1, description="share of every row to prune; that of the pattern where it has one, as 2:4 has 0.5"
    )
    pattern: Annotated[str, NameIn(PRUNING_PATTERNS)] = "unstructured"
    allocation: Literal["uniform", "owl", "searched"] = pydantic.Field(
        "uniform",
        description="how layers share the zeros, on average as many as the ratio says; owl: those with more outliers "
        "keep more; searched: by evolution on the loss",
    )
    calibration: CalibrationSection = CalibrationSection()
    reconstruction: ReconstructionSection | None = None
    healing: HealingSection | None = None

    @property
    def measured(self) -> bool:
        """Whether windows of the calibration text are run through the model before it is pruned."""
        shared_out = self.allocation != "uniform"
        return PRUNING_METHODS.get(self.method).needs_calibration or self.reconstruction is not None or shared_out

    @property
    def calibrated(self) -> bool:
        """Whether the calibration text is read at all."""
        return self.measured or self.healing is not None

    @property
    def by_layers(self) -> bool:
        """Whether one layer after the other is all that has to be in memory; healing and a search for the shares of
        the layers run the whole model.
        """
        return self.healing is None and self.allocation != "searched"

    @pydantic.model_validator(mode="after")
    def _pattern(self) -> SparsitySection:
        fixed = PRUNING_PATTERNS.get(self.pattern).ratio
        if fixed is not None and self.ratio != fixed:
            raise ValueError(f"pattern {self.pattern} prunes exactly {fixed:g}: ratio must be {fixed:g}")
        if fixed is not None and self.allocation != "uniform":
            raise ValueError(f"pattern {self.pattern} prunes every layer alike: allocation must be uniform")
        return self
