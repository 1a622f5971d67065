"""The time of one forward of a candidate."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shearling.elastic.super_network import SuperNetwork

WARM_UP, REPEATS = 2, 9


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
