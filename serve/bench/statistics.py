"""Medians, intervals and paired ratios for few, noisy, skewed timings.

Intervals are percentile bootstraps of the median: no normality is assumed, and one disturbed sample moves nothing
far. With n samples they are no wider than their range; at n = 5 that is about 94 % of coverage at best.

A process can be fast or slow for its whole life, so blocks of one process are not independent of each other. Where
several processes were measured, they are drawn first, and their blocks within them (Davison and Hinkley, Bootstrap
Methods and their Application, 3.8).
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
FEWEST_PROCESSES = 5
"""Fewer say too little of how far others differ: of five that differ by 2 %, and their blocks by 1 %, an interval of
95 % holds the median in 90 % of cases, of three in 80 %.
"""


class Estimate(Document):
    """A median with its interval.

    Attributes:
        low, high: bounds at `CONFIDENCE`; equal to the median where there is one sample, which says nothing of its
            spread.
        samples: how many values it rests on; of a ratio that was not measured long enough to have any, 0, and the rest
            says nothing.
    """

    median: float
    low: float
    high: float
    samples: int = pydantic.Field(ge=0)


def bootstrap_median(
    values: Sequence[float],
    *,
    groups: Sequence[int] | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Median and percentile bootstrap interval (Efron and Tibshirani, An Introduction to the Bootstrap, 13.3).

    Args:
        values: at least one, finite.
        groups: the process that each value is of; None if all are independent.
        seed: of the resampling; the same values and seed give the same interval.
        confidence: share of intervals that should contain the true median, 0 to 1.
        resamples: how often the values are drawn anew, with replacement.

    Raises:
        ValueError: no values, or one that is not finite (a defect of the caller).
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"a median needs finite values, got {data.size}: {data[:5]}")
    medians = _resampled_medians(data, groups, np.random.default_rng(seed), resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Estimate(median=float(np.median(data)), low=float(low), high=float(high), samples=int(data.size))


def paired_ratio(
    candidate: Sequence[float],
    reference: Sequence[float],
    *,
    groups: Sequence[int] | None = None,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Median of candidate[i] / reference[i], where both were measured side by side in block i.

    Drift of the machine that lasts longer than a block falls out of each ratio; a ratio of medians would keep it.

    Args:
        candidate: timings by block, positive.
        reference: timings of the same blocks.
        groups: see `bootstrap_median`.
        seed: see `bootstrap_median`.
        confidence: see `bootstrap_median`.

    Raises:
        ValueError: lengths differ, or a value is not positive (a defect of the caller).
    """
    above, below = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if above.shape != below.shape or (above <= 0).any() or (below <= 0).any():
        raise ValueError(f"pairs of positive timings are needed, got {above.shape} and {below.shape}")
    return bootstrap_median((above / below).tolist(), groups=groups, seed=seed, confidence=confidence)


def independent_ratio(
    candidate: Sequence[float],
    reference: Sequence[float],
    *,
    groups: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Median(candidate) / median(reference) of two separate runs, each resampled by itself.

    Args:
        candidate: positive values of one run.
        reference: positive values of another; the lengths may differ.
        groups: of both, see `bootstrap_median`.
        seed: see `bootstrap_median`.
        confidence: see `bootstrap_median`.

    Raises:
        ValueError: a side is empty or not positive (a defect of the caller).
    """
    above, below = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if not above.size or not below.size or (above <= 0).any() or (below <= 0).any():
        raise ValueError(f"positive values are needed on both sides, got {above.size} and {below.size}")
    generator = np.random.default_rng(seed)
    medians = [
        _resampled_medians(data, processes, generator, RESAMPLES)
        for data, processes in zip((above, below), groups, strict=True)
    ]
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


def _resampled_medians(
    data: np.ndarray, groups: Sequence[int] | None, generator: np.random.Generator, resamples: int
) -> np.ndarray:
    processes = np.asarray(groups if groups is not None else np.zeros(data.size))
    parts = [data[processes == process] for process in np.unique(processes)]
    if len(parts) > 1:
        return _medians_of_drawn_processes(_thinned(parts), generator, resamples)
    if data.size <= MANY:
        return np.median(data[generator.integers(0, data.size, size=(resamples, data.size))], axis=1)
    # The middle one of n uniform draws is Beta-distributed, and so is the share of sorted values below the median.
    middle = (data.size + 1) / 2
    places = data.size * generator.beta(middle, middle, size=resamples)
    return np.sort(data)[places.astype(np.intp)]


def _medians_of_drawn_processes(
    parts: Sequence[np.ndarray], generator: np.random.Generator, resamples: int
) -> np.ndarray:
    """As many processes as there are, drawn anew, and of each as many of its values as it has."""
    sizes = np.asarray([part.size for part in parts])
    widest = int(sizes.max())
    table = np.full((len(parts), widest), np.inf)
    for row, part in zip(table, parts, strict=True):
        row[: part.size] = part
    drawn = generator.integers(0, len(parts), size=(resamples, len(parts)))
    places = (generator.random((resamples, len(parts), widest)) * sizes[drawn][..., None]).astype(np.intp)
    # Infinity where a process has fewer values than another stands behind all values.
    values = np.where(np.arange(widest) < sizes[drawn][..., None], table[drawn[..., None], places], np.inf)
    ordered = np.sort(values.reshape(resamples, -1), axis=1)
    counts, each = sizes[drawn].sum(axis=1), np.arange(resamples)
    return (ordered[each, (counts - 1) // 2] + ordered[each, counts // 2]) / 2


def _thinned(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same distributions, of so many values that they can be drawn one by one."""
    total = sum(part.size for part in parts)
    if total <= MANY:
        return list(parts)
    counts = [max(1, round(MANY * part.size / total)) for part in parts]
    return [np.quantile(part, (np.arange(n) + 0.5) / n) for part, n in zip(parts, counts, strict=True)]
