"""What candidates cost, in words and units."""

from __future__ import annotations

from dataclasses import dataclass

from search.strategies.strategy import Cost


@dataclass(frozen=True)
class CostWords:
    """How a cost is shown.

    Attributes:
        name: with its unit, for an axis.
        scale: shown values are this times smaller.
        unit: behind a shown value.
    """

    name: str
    scale: float
    unit: str

    def show(self, value: float) -> str:
        """A value with its unit: `2.13 M`."""
        return f"{value / self.scale:.2f} {self.unit}"


COSTS: dict[Cost, CostWords] = {
    "adapter_params": CostWords("adapter parameters, millions", 1e6, "M"),
    "parameters": CostWords("parameters, millions", 1e6, "M"),
    "macs": CostWords("MACs, billions", 1e3, "G"),
    "latency": CostWords("forward in torch, ms", 1.0, "ms"),
}
