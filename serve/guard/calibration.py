"""How noisy is this machine right now? Asked before a test that only a quiet machine can decide."""

from __future__ import annotations

import time

import numpy as np

from serve.visitor.waiting import waited_s
from shearling.strict_json import Document

SECONDS = 2.0
PIECE_S = 0.01
"""About as long as a phase of a small model."""
SHARE_BYTES = 2**25
"""More than the caches hold: decoding waits for memory, and so does this."""
CONSISTENT = 1.4826
"""Median absolute deviation to standard deviation of a normal distribution."""


class Calibration(Document):
    """What one machine is like at one time.

    Attributes:
        noise: by how much two equal pieces of work, one after the other, differ typically; one standard deviation of
            the log ratio, net of what other processes took.
        lost_share: of the wall time that went to other processes.
        pairs: of pieces that were timed.
    """

    noise: float
    lost_share: float
    pairs: int

    def told(self) -> str:
        """In words."""
        return (
            f"equal pieces of work differ by {self.noise:.1%} here, and {self.lost_share:.0%} of the time goes to "
            "other processes"
        )


def calibrate(seconds: float = SECONDS) -> Calibration:
    """Time equal pieces of work, which read memory with one thread.

    Args:
        seconds: how long.
    """
    data = np.ones(SHARE_BYTES // 4, dtype=np.float32)
    repeats = _repeats(data)
    net_s: list[float] = []
    lost_s, started_s = 0.0, time.perf_counter()
    while time.perf_counter() - started_s < seconds or len(net_s) < 4:
        waited_before, before_s = waited_s(), time.perf_counter()
        for _ in range(repeats):
            data.sum()
        wall_s, waited_after = time.perf_counter() - before_s, waited_s()
        waited = 0.0 if waited_before is None or waited_after is None else waited_after - waited_before
        lost_s += waited
        net_s.append(max(wall_s - waited, 1e-3 * wall_s))
    whole_s = time.perf_counter() - started_s
    return Calibration(noise=typical_difference(net_s), lost_share=min(1.0, lost_s / whole_s), pairs=len(net_s) // 2)


def typical_difference(times_s: list[float]) -> float:
    """Standard deviation of the log ratio of neighbours, from the median, which outliers do not move."""
    logs = np.log(np.asarray(times_s))
    differences = np.abs(logs[1::2] - logs[: logs.size // 2 * 2 : 2])
    return float(CONSISTENT * np.median(differences))


def _repeats(data: np.ndarray[tuple[int], np.dtype[np.float32]]) -> int:
    best_s = min(_once(data) for _ in range(3))
    return max(1, round(PIECE_S / best_s))


def _once(data: np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    started_s = time.perf_counter()
    data.sum()
    return time.perf_counter() - started_s
