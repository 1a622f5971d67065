"""[variants]: the pruned model again, with more zeros, for a search to choose among layer by layer."""

from __future__ import annotations

import pydantic

from shearling.recipe.section import Section


class VariantsSection(Section):
    """Layers at other ratios than that of [sparsity], by the same method on the same text."""

    ratios: tuple[float, ...] = pydantic.Field(
        min_length=1, description="shares of zeros, ascending, in whole percent, above that of [sparsity]"
    )

    @pydantic.field_validator("ratios")
    @classmethod
    def _ascending(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        for ratio in ratios:
            if not 0 < ratio < 1 or abs(100 * ratio - round(100 * ratio)) > 1e-9:
                raise ValueError(f"{ratio:g} is no share of zeros in whole percent, such as 0.6")
        if list(ratios) != sorted(set(ratios)):
            raise ValueError("the ratios must ascend")
        return ratios

    @property
    def percents(self) -> tuple[int, ...]:
        """The ratios in hundredths."""
        return tuple(round(100 * ratio) for ratio in self.ratios)
