"""What candidates cost, in words and units."""

from __future__ import annotations

from dataclasses import dataclass

from search.strategies.strategy import Cost


@dataclass(frozen=True)
class CostWords:
    """How a cost is shown.

    Attributes:
        field: of the journal, that holds it; None where nothing is saved.
        name: with its unit, for an axis.
        scale: shown values are this times smaller.
        unit: behind a shown value.
    """

    field: str | None
    name: str
    scale: float
    unit: str

    def show(self, value: float) -> str:
        """A value with its unit: `2.13 M`."""
        return f"{value / self.scale:.2f} {self.unit}"


COSTS: dict[Cost, CostWords] = {
    "none": CostWords(None, "nothing is saved", 1.0, ""),
    "adapter_params": CostWords("adapter_params", "adapter parameters, millions", 1e6, "M"),
    "parameters": CostWords("parameters", "parameters, millions", 1e6, "M"),
    "nonzero_params": CostWords("nonzero_params", "nonzero parameters, millions", 1e6, "M"),
    "macs": CostWords("macs_m", "MACs, billions", 1e3, "G"),
    "bytes": CostWords("model_bytes", "bytes of the exported weights, millions", 1e6, "MB"),
    "latency": CostWords("latency_ms", "predicted forward in OpenVINO, ms", 1.0, "ms"),
}
