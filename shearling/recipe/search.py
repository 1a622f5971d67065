"""[search]: how sub-networks are looked for."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from shearling.recipe.section import Section
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
    seed: int = 0
    cost: Literal["adapter_params", "parameters", "macs", "latency"] = pydantic.Field(
        "adapter_params", description="what to save, beside accuracy"
    )
    macs_seq_len: int = pydantic.Field(256, ge=1, description="tokens of the forward whose MACs or latency are counted")
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
        if self.max_cost_share is not None and self.cost == "latency":
            raise ValueError("max_cost_share needs a cost that is counted: adapter_params, parameters or macs")
        return self
