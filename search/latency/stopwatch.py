"""Time of one forward of an OpenVINO model, batch 1, on the CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from search.latency.table import Interval
from shearling.kernel.openvino_extension import PREFERRED_PROPERTIES, compile_ir, needs_extension
from shearling.kernel.runtime_refusal import refusals

WARM_UP = 3
LEAST_SAMPLES = 9

Feed = Mapping[str, Any]


class Forward:
    """A compiled model, ready to be timed.

    Args:
        xml: the IR.
        threads: of the runtime.
        tokens: of the sequence.
        packed: whether it runs beside operators of our own, with the properties that suit them; None: where it has
            some itself.

    Raises:
        ArtefactMissing, ModelUnsupported, CompilerMissing: it cannot be compiled.
    """

    def __init__(self, xml: Path, *, threads: int, tokens: int, packed: bool | None = None) -> None:
        packed = needs_extension(xml) if packed is None else packed
        properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads)}
        properties |= PREFERRED_PROPERTIES if packed else {}
        # As `serve` compiles it: attention goes into the layers of a packed decoder, and what is slower packed is
        # unpacked.
        compiled = compile_ir(xml, properties=properties, packed=None)
        self._xml = xml
        self._request = compiled.create_infer_request()
        self._feed = _feed(compiled, tokens)
        self._stateful = bool(self._request.query_state())

    def sample_ms(self) -> float:
        """Time of one forward, by the runtime's own clock, with nothing in its cache."""
        if self._stateful:
            self._request.reset_state()
        with refusals(self._xml):
            self._request.infer(self._feed)
        return float(self._request.latency)

    def samples_ms(self, *, seconds: float) -> list[float]:
        """Times of forwards after a warm-up, for so long, and a few at least."""
        for _ in range(WARM_UP):
            self.sample_ms()
        samples: list[float] = []
        ends_s = time.monotonic() + seconds
        while len(samples) < LEAST_SAMPLES or time.monotonic() < ends_s:
            samples.append(self.sample_ms())
        return samples


def summarise_ms(samples: list[float], *, layers: int = 1) -> Interval:
    """Median and middle half of samples, of one of so many layers."""
    low, median, high = (float(value) / layers for value in np.quantile(samples, [0.25, 0.5, 0.75]))
    return Interval(ms=median, low_ms=low, high_ms=high)


def _feed(compiled: Any, tokens: int) -> dict[str, Any]:
    ids = np.arange(tokens, dtype=np.int64)[None] % 100 + 1
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.arange(tokens, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }
    names = [name for port in compiled.inputs for name in port.names]
    if "x" in names:
        shape = [int(size) for size in compiled.input("x").shape]
        return {"x": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    return {name: value for name, value in known.items() if name in names}
