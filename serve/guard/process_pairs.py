"""Each pair of processes is one observation, however many blocks it ran: what that allows to conclude, and when.

A process owes part of its speed to luck, for life: where its memory lies. Blocks of one pair share that luck, and the
noise of the same seconds, so they are no independent observations, and an interval of many blocks of two pairs would be
as narrow as it is wrong. Here the blocks of a pair only make one figure, its effect: the Hodges-Lehmann estimate of
their log ratios. Effects of different pairs are independent, and as often above the true ratio as below it, because
both sides draw from the same luck.

The interval of m effects is the narrower end of two, each with its part of the error:

- Student's t. It keeps its level for normal effects, also where each has another variance, as pairs of few and of many
  blocks have (Bakirov and Szekely 2006; Ibragimov and Muller, t-statistic based correlation and heterogeneity robust
  inference, JBES 28, 2010), up to an error of 8 % a look; the largest here is 1.5 %. Three pairs are enough.
- Wilcoxon's signed-rank interval (`serve.guard.sequential`), from `RANKED_PAIRS` on: exact for any symmetric
  distribution, and not widened by a pair or two that were unlucky by ten percent.

Looks are planned: after 3 pairs, then after every growth by 0.3, without end. The error is divided among them
(Bonferroni) in a geometric series, which sums to 1 however many follow. So a longer budget continues the same test:
it adds looks and changes none. Where time ends between two looks, the next one is taken early.

Sizes of pairs may depend on the data through `serve.guard.allocation` alone, which sees each effect's distance from the
limit and never its side. At the limit, where an error is most likely, the sides are a fair coin whatever the distances.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from serve.bench.statistics import CONFIDENCE, Estimate
from serve.guard.sequential import hodges_lehmann, signed_rank_bounds

Outcome = Literal["pass", "regression", "inconclusive"]
Effects = npt.NDArray[np.float64]

FIRST_PAIRS = 3
"""Two pairs scatter by luck alone as little as one wants: Student's t asks for 25 times their scatter."""
GROWTH = 1.3
FIRST_SHARE = 0.3
"""Of the error, for the first look; each later one gets the same share of what is left."""
RANKED_PAIRS = 8
"""Fewer have no signed-rank interval at the error of a look."""


def planned_looks() -> Iterator[int]:
    """Numbers of pairs after which to look: 3, 4, 6, 8, 11, 15, 20, 26, ... without end."""
    count = FIRST_PAIRS
    while True:
        yield count
        count = math.ceil(GROWTH * count)


def look_error(place: int, *, confidence: float = CONFIDENCE) -> float:
    """Part of the error that look number `place`, from 0, may spend, both sides together."""
    return (1 - confidence) * FIRST_SHARE * (1 - FIRST_SHARE) ** place


def looks(pairs: int, *, ended: bool) -> Iterator[tuple[int, float]]:
    """Each look that so many pairs allow: how many of them it sees, and its error.

    Args:
        pairs: so far.
        ended: no more will come: what is there counts as the next look.
    """
    for place, count in enumerate(planned_looks()):
        if count > pairs:
            if ended and pairs >= FIRST_PAIRS and count > pairs > _look_before(count):
                yield pairs, look_error(place)
            return
        yield count, look_error(place)


def effect_bounds(effects: Sequence[float], *, error: float) -> tuple[float, float]:
    """Interval of the true log ratio.

    Args:
        effects: of pairs; at least two.
        error: probability that it misses, both sides together.
    """
    values = np.asarray(effects, dtype=np.float64)
    ranked = values.size >= RANKED_PAIRS
    part = error / 2 if ranked else error
    half = student_quantile(1 - part / 2, values.size - 1) * float(values.std(ddof=1)) / math.sqrt(values.size)
    low, high = float(values.mean()) - half, float(values.mean()) + half
    if ranked:
        ranked_low, ranked_high = signed_rank_bounds(values, error=part)
        low, high = max(low, ranked_low), min(high, ranked_high)
    # Two intervals may miss each other where one of them is wrong: neither is believed then.
    return (low, high) if low <= high else (-math.inf, math.inf)


def judge_effects(effects: Sequence[float], *, max_ratio: float, ended: bool) -> tuple[Outcome, Estimate]:
    """Judge pairs at the planned looks; the first clear answer is kept, for the looks share the error.

    Args:
        effects: log ratios of candidate to reference, one for each pair of processes, in the order of time.
        max_ratio: largest acceptable ratio.
        ended: no more pairs will come.

    Returns:
        The outcome, and the ratio with the interval of the look that decided, or of the last one.
    """
    limit, found = math.log(max_ratio), _estimate(effects, -math.inf, math.inf)
    for count, error in looks(len(effects), ended=ended):
        seen = effects[:count]
        low, high = effect_bounds(seen, error=error)
        found = _estimate(seen, low, high)
        if high <= limit:
            return "pass", found
        if low > limit:
            return "regression", found
    return "inconclusive", found


@functools.cache
def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t for whole degrees of freedom, by bisection of its distribution.

    Args:
        probability: above one half.
        degrees: at least 1.
    """
    low, high = 0.0, 1.0
    while _student_distribution(high, degrees) < probability:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_distribution(middle, degrees) < probability else (low, middle)
    return high


def _student_distribution(value: float, degrees: int) -> float:
    # Abramowitz and Stegun, 26.7.3 and 26.7.4: finite sums of powers of the cosine.
    angle = math.atan2(value, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + inside) / 2


def _look_before(count: int) -> int:
    earlier = itertools.takewhile(lambda look: look < count, planned_looks())
    return max(earlier, default=0)


def _estimate(effects: Sequence[float], low: float, high: float) -> Estimate:
    middle = min(max(hodges_lehmann(np.asarray(effects)), low), high) if effects else 0.0
    return Estimate(
        median=math.exp(middle),
        low=math.exp(low),
        high=math.exp(high) if high < math.log(np.finfo(np.float64).max) else float(np.finfo(np.float64).max),
        samples=max(1, len(effects)),
    )
