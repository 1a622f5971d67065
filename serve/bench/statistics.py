"""Medians, intervals and paired ratios for few, noisy, skewed timings.

Intervals are percentile bootstraps of the median: no normality is assumed, and one disturbed sample moves nothing
far. With n samples they are no wider than their range; at n = 5 that is about 94 % of coverage at best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pydantic

from shearling.strict_json import Document

CONFIDENCE = 0.95
RESAMPLES = 4000
MANY = 1000
"""More values than these are not drawn one by one."""


class Estimate(Document):
    """A median with its interval.

    Attributes:
        low, high: bounds at `CONFIDENCE`; equal to the median where there is one sample, which says nothing of its
            spread.
        samples: how many values it rests on.
    """

    median: float
    low: float
    high: float
    samples: int = pydantic.Field(ge=1)


def bootstrap_median(
    values: Sequence[float], *, seed: int = 0, confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> Estimate:
    """Median and percentile bootstrap interval (Efron and Tibshirani, An Introduction to the Bootstrap, 13.3).

    Args:
        values: at least one, finite.
        seed: of the resampling; the same values and seed give the same interval.
        confidence: share of intervals that should contain the true median, 0 to 1.
        resamples: how often the values are drawn anew, with replacement.

    Raises:
        ValueError: no values, or one that is not finite (a defect of the caller).
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"a median needs finite values, got {data.size}: {data[:5]}")
    medians = _resampled_medians(data, np.random.default_rng(seed), resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Estimate(median=float(np.median(data)), low=float(low), high=float(high), samples=int(data.size))


def paired_ratio(
    candidate: Sequence[float], reference: Sequence[float], *, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """Median of candidate[i] / reference[i], where both were measured side by side in block i.

    Drift of the machine that lasts longer than a block falls out of each ratio; a ratio of medians would keep it.

    Args:
        candidate: timings by block, positive.
        reference: timings of the same blocks.
        seed: see `bootstrap_median`.
        confidence: see `bootstrap_median`.

    Raises:
        ValueError: lengths differ, or a value is not positive (a defect of the caller).
    """
    above, below = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if above.shape != below.shape or (above <= 0).any() or (below <= 0).any():
        raise ValueError(f"pairs of positive timings are needed, got {above.shape} and {below.shape}")
    return bootstrap_median((above / below).tolist(), seed=seed, confidence=confidence)


def independent_ratio(
    candidate: Sequence[float], reference: Sequence[float], *, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """Median(candidate) / median(reference) of two separate runs, each resampled by itself.

    Args:
        candidate: positive values of one run.
        reference: positive values of another; the lengths may differ.
        seed: see `bootstrap_median`.
        confidence: see `bootstrap_median`.

    Raises:
        ValueError: a side is empty or not positive (a defect of the caller).
    """
    above, below = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if not above.size or not below.size or (above <= 0).any() or (below <= 0).any():
        raise ValueError(f"positive values are needed on both sides, got {above.size} and {below.size}")
    generator = np.random.default_rng(seed)
    medians = [_resampled_medians(data, generator, RESAMPLES) for data in (above, below)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians[0] / medians[1], [tail, 1 - tail])
    return Estimate(
        median=float(np.median(above) / np.median(below)),
        low=float(low),
        high=float(high),
        samples=int(min(above.size, below.size)),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of all values lie, interpolated linearly."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), share))


def _resampled_medians(data: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    if data.size <= MANY:
        return np.median(data[generator.integers(0, data.size, size=(resamples, data.size))], axis=1)
    # The middle one of n uniform draws is Beta-distributed, and so is the share of sorted values below the median.
    middle = (data.size + 1) / 2
    places = data.size * generator.beta(middle, middle, size=resamples)
    return np.sort(data)[places.astype(np.intp)]
