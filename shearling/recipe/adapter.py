"""[adapter]: where adapters sit, and their ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from shearling.recipe.section import Section, require_unique


class GroupSection(Section):
    """Modules of a layer that share one rank, and the ranks it may take."""

    name: str = pydantic.Field(pattern="^[A-Za-z0-9_]+$")
    modules: tuple[str, ...] = pydantic.Field(
        min_length=1, description="names inside a layer, whole or their last part: 'q_proj'"
    )
    ranks: tuple[Annotated[int, pydantic.Field(ge=1, strict=True)], ...] = pydantic.Field(
        min_length=1, description="descending, the full rank first"
    )


class AdapterSection(Section):
    """The elastic adapters."""

    papers: ClassVar[Mapping[str, Any]] = {"lora_alpha": 64.0, "scaling": "constant"}

    r: int = pydantic.Field(32, ge=1, description="the largest rank")
    lora_alpha: float = pydantic.Field(
        128, gt=0, description="scales what an adapter adds to a weight; with [width] 64 unless it is said"
    )
    scaling: Literal["constant", "rank"] = pydantic.Field(
        "rank",
        description="rank: lora_alpha over the active rank, so that a smaller sub-adapter moves the weights as far; "
        "constant: lora_alpha / r for every sub-adapter (as in the papers), and with [width] unless it is said",
    )
    lora_dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    masked: bool = pydantic.Field(True, description="train under the sparsity mask, so that merging keeps every zero")
    groups: tuple[GroupSection, ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _names(self) -> AdapterSection:
        require_unique([group.name for group in self.groups])
        return self

    @pydantic.model_validator(mode="after")
    def _descending(self) -> AdapterSection:
        for group in self.groups:
            if group.ranks[0] != self.r or list(group.ranks) != sorted(set(group.ranks), reverse=True):
                raise ValueError(
                    f"the ranks of group {group.name!r} must descend from r = {self.r}, found {list(group.ranks)}"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _dropout(self) -> AdapterSection:
        if self.masked and self.lora_dropout:
            raise ValueError(
                "lora_dropout needs the adapter's own input, which the masked form does not have: set "
                "lora_dropout = 0 or masked = false"
            )
        return self
