"""Looking again and again at growing data without fooling oneself: rounds that are independent, as those of loading.

Blocks of one pair of processes share its luck; for them see `serve.guard.process_pairs`.

Stopping at the first look that pleases makes a 95 % interval wrong far more often than in 5 % of cases. Here the looks
are planned: after FIRST blocks, then after every growth by half, LOOKS in all, and each look has an equal part of the
error (Bonferroni). So the intervals of all looks hold the true ratio together with the stated confidence, whenever one
stops, and also where time ends the measuring: that look is one of the planned ones, taken early.

Each interval inverts Wilcoxon's signed-rank test (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods,
3.3): the estimate is the median of all pairwise means of log ratios. Its level is exact for independent blocks whose
log ratios scatter symmetrically, whatever the distribution, as they do where both sides of a pair suffer the same
noise; up to 29 % of the blocks may be outliers.

Why not a t interval: timings have heavy tails, and one block in which the system was busy would widen it beyond use.
Why not the bootstrap of `serve.bench.statistics`: it promises its level for many blocks only, and the first look comes
after 16, at 99.4 %.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from serve.bench.statistics import CONFIDENCE, Estimate

MINIMUM = 9
"""Nine blocks are the fewest whose range has the confidence of one look: 1 - 2 / 2**9 = 0.996."""

FIRST = 16
"""Two sessions of eight blocks: no verdict may rest on one pair of processes."""
LOOKS = 8
"""Each takes its part of the error, and widens the intervals of all."""
GROWTH = 1.5
"""A clear answer waits for at most half as many blocks again as it needs, and eight looks reach 275."""
EXACT = 300
"""Values whose signed-rank statistic is counted out."""


def planned_looks(first: int = FIRST) -> tuple[int, ...]:
    """Numbers of blocks after which to look: 16, 24, 36, 54, ..., or from another first one on."""
    return tuple(itertools.accumulate(range(LOOKS - 1), lambda count, _: math.ceil(GROWTH * count), initial=first))


def look_confidence(confidence: float = CONFIDENCE) -> float:
    """Of a single look, so that all of them together keep `confidence`."""
    return 1 - (1 - confidence) / LOOKS


def looks(count: int, *, ended: bool, first: int = FIRST) -> Iterator[int]:
    """The looks that `count` blocks allow.

    Args:
        count: blocks so far.
        ended: no more will come: what is there counts as the next look.
        first: see `planned_looks`; at least `MINIMUM`.
    """
    planned = planned_looks(first)
    yield from (look for look in planned if look <= count)
    if ended and count >= MINIMUM and count not in planned and count < planned[-1]:
        yield count


def signed_rank_ratio(
    candidate: Sequence[float], reference: Sequence[float], *, confidence: float = CONFIDENCE
) -> Estimate:
    """Pseudo-median of candidate[i] / reference[i] with the interval of the signed-rank test.

    Args:
        candidate: timings by block, positive.
        reference: timings of the same blocks.
        confidence: share of intervals that hold the true ratio; where too few blocks can give it, the interval is
            unbounded.

    Raises:
        ValueError: lengths differ, or a value is not positive (a defect of the caller).
    """
    above, below = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if not above.size or above.shape != below.shape or (above <= 0).any() or (below <= 0).any():
        raise ValueError(f"pairs of positive timings are needed, got {above.shape} and {below.shape}")
    # Of logarithms, so that candidate over reference and reference over candidate are judged alike, and a noise that
    # multiplies both sides scatters symmetrically.
    logs = np.log(above / below)
    low, high = signed_rank_bounds(logs, error=1 - confidence)
    return Estimate(
        median=math.exp(hodges_lehmann(logs)),
        low=float(np.exp(low)),
        high=float(min(np.exp(high), np.finfo(np.float64).max)),
        samples=int(logs.size),
    )


def signed_rank_bounds(values: npt.NDArray[np.float64], *, error: float) -> tuple[float, float]:
    """Interval of the centre of a symmetric distribution; unbounded where there are too few values.

    Args:
        values: [count], independent.
        error: probability that it misses, both sides together.
    """
    means = np.sort(_pairwise_means(values))
    # A centre c is rejected where the rank sum of values minus c is extreme; that sum counts the pairwise means above
    # c, so the interval ends at an order statistic of these means.
    outside = _critical_rank(values.size, error / 2)
    return (float(means[outside]), float(means[-1 - outside])) if outside >= 0 else (-np.inf, np.inf)


def hodges_lehmann(values: npt.NDArray[np.float64]) -> float:
    """The centre of values that scatter symmetrically: the median of all pairwise means."""
    return float(np.median(_pairwise_means(values)))


def _pairwise_means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    first, second = np.triu_indices(values.size)
    return (values[first] + values[second]) / 2


def _critical_rank(count: int, tail: float) -> int:
    """The largest w with P(W <= w) <= tail for the signed-rank statistic W of `count` values; -1 where there is none.

    Of many values by the normal distribution (Hollander, Wolfe and Chicken, 3.1), whose rank is a little smaller: the
    exact one costs the third power of their number, seconds from a thousand on.
    """
    if count <= EXACT:
        return _exact_rank(count, tail)
    mean, deviation = count * (count + 1) / 4, math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    return math.floor(mean + NormalDist().inv_cdf(tail) * deviation - 0.5)


@functools.cache
def _exact_rank(count: int, tail: float) -> int:
    """See `_critical_rank`.

    W is the sum of a random subset of 1, ..., count: its distribution is the product of (1 + x^k) / 2.
    """
    density = np.ones(1)
    for rank in range(1, count + 1):
        wider = np.zeros(density.size + rank)
        wider[: density.size] += density / 2
        wider[rank:] += density / 2
        density = wider
    return int(np.searchsorted(np.cumsum(density), tail, side="right")) - 1
