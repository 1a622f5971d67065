"""What candidates cost, in words and units, and the time of one forward."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.strategies.strategy import Cost

if TYPE_CHECKING:
    from shearling.elastic.super_network import SuperNetwork

WARM_UP, REPEATS = 2, 9


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


class LatencyProbe:
    """Times the active sub-network on one sequence of fixed tokens, batch 1, in torch.

    It orders candidates. What a runtime makes of the exported model is for `python -m serve bench` to say.

    Args:
        network: the super-network, in eval mode.
        tokens: length of the sequence.
    """

    def __init__(self, network: SuperNetwork, *, tokens: int) -> None:
        import torch

        self._model = network.model
        device = next(network.model.parameters()).device
        self._tokens = torch.arange(1, tokens + 1, device=device)[None] % 100 + 1

    def measure_ms(self) -> float:
        """Median of several forwards after a warm-up."""
        import torch

        times_ms = []
        with torch.inference_mode():
            for _ in range(WARM_UP + REPEATS):
                started_s = time.perf_counter()
                self._model(input_ids=self._tokens)
                times_ms.append(1e3 * (time.perf_counter() - started_s))
        return statistics.median(times_ms[WARM_UP:])
