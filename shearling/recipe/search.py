"""[search]: how sub-networks are looked for."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from shearling.recipe.section import Section, Seed
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.registry.registry import NameIn
from shearling.registry.search_algorithms import SEARCH_ALGORITHMS


class SearchSection(Section):
    """Defaults of `python -m search`; its options override them."""

    algorithm: Annotated[str, NameIn(SEARCH_ALGORITHMS)] = "nsga2"
    evaluations: int = pydantic.Field(
        32, ge=1, description="most sub-networks that the algorithm asks for; the largest, middle and smallest are free"
    )
    population: int = pydantic.Field(8, ge=2)
    limit: int | None = pydantic.Field(
        None, ge=1, description="most validation rows that choose, and most that are held back for the prediction"
    )
    batch_size: int = pydantic.Field(64, ge=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: Seed = 0
    cost: Literal["auto", "none", "adapter_params", "parameters", "nonzero_params", "macs", "bytes", "latency"] = (
        pydantic.Field(
            "auto",
            description="what to save, beside accuracy; auto: bytes or nonzero_params where layers choose, else macs "
            "where sub-networks differ in them, else none",
        )
    )
    macs_seq_len: int = pydantic.Field(256, ge=1, description="tokens of the forward whose MACs are counted")
    weight_format: Annotated[str, NameIn(NUMBER_FORMATS)] | None = pydantic.Field(
        None, description="of the export whose bytes are counted; absent: that of the latency table, or fp32"
    )
    sparse_kernel: bool | None = pydantic.Field(
        None, description="whether the zeros of that export are packed away; absent: as in the latency table, or not"
    )
    ratios: tuple[float, ...] = pydantic.Field(
        (), description="shares of zeros that each layer chooses among, beside its own; they stand in [variants]"
    )
    layer_formats: tuple[Literal["int8", "int4"], ...] = pydantic.Field(
        (), description="number formats that each layer chooses among; absent: all layers have that of the export"
    )
    max_bytes: int | None = pydantic.Field(None, ge=1, description="most that the exported weights may take")
    max_latency_ms: float | None = pydantic.Field(
        None, gt=0, description="most that a forward may take, as the latency table predicts"
    )
    max_cost_share: float | None = pydantic.Field(
        None,
        gt=0,
        le=1,
        description="most that a candidate may cost, as a share of the largest sub-network; 0.75 is a quarter less",
    )
    prefer: Literal["accuracy", "cheaper"] = pydantic.Field(
        "accuracy", description="of sub-networks that the rows do not tell from the largest: that one, or the cheapest"
    )
    accuracy_delta: float | None = pydantic.Field(
        None,
        ge=0,
        le=1,
        description="the best is the cheapest within this of the reference accuracy; absent: see prefer",
    )
    reference_accuracy: float | None = pydantic.Field(
        None, ge=0, le=1, description="absent: that of the largest sub-network"
    )

    @pydantic.model_validator(mode="after")
    def _reference(self) -> SearchSection:
        if self.reference_accuracy is not None and self.accuracy_delta is None:
            raise ValueError("reference_accuracy needs accuracy_delta")
        return self
