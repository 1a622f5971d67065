"""Each pair of processes is one observation, however many blocks it ran: what that allows to conclude, and when.

A process owes part of its speed to luck, for life: where its memory lies. Blocks of one pair share that luck, and the
noise of the same seconds, so they are no independent observations, and an interval of many blocks of two pairs would be
as narrow as it is wrong. Here the blocks of a pair only make one figure, its effect: the Hodges-Lehmann estimate of
their log ratios. Effects of different pairs are independent, and as often above the true ratio as below it, because
both sides draw from the same luck.

The interval of m effects is what two have in common, each with its part of the error:

- Student's t. It keeps its level for normal effects, also where each has another variance, as pairs of few and of many
  blocks have (Bakirov and Szekely 2006; Ibragimov and Muller, t-statistic based correlation and heterogeneity robust
  inference, JBES 28, 2010), up to an error of 8 % a look; the largest here is 1.5 %. Three pairs are enough.
- From `SIGNED_PAIRS` on the sign test's: two order statistics of the effects (Hollander, Wolfe and Chicken,
  Nonparametric Statistical Methods, 3.6). Exact for any distribution whose median is the true ratio, and not widened by
  a few pairs that were unlucky by ten percent.

Looks are planned: after 3 pairs, then after every growth by 0.4, without end. The error of each test is divided among
its looks (Bonferroni) in a geometric series, which sums to its part however many follow. So a longer budget continues
the same test: it adds looks and changes none. Where time ends between two looks, the next one is taken early.

Sizes of pairs may depend on the data through `serve.guard.allocation` alone, which sees each effect's distance from the
limit and never its side. At the limit, where an error is most likely, the sides are a fair coin whatever the distances.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from serve.bench.statistics import CONFIDENCE, Estimate
from serve.guard.sequential import hodges_lehmann

Outcome = Literal["pass", "regression", "inconclusive"]
Effects = npt.NDArray[np.float64]

FIRST_PAIRS = 3
"""Two pairs scatter by luck alone as little as one wants: Student's t asks for 25 times their scatter."""
GROWTH = 1.4
SIGNED_PAIRS = 12
"""Fewer would have to agree all, and one unlucky pair would undo that."""
STUDENT_PART, STUDENT_SHARE = 0.74, 0.4
"""Of the error for Student's t; of that for the first look. Each later one gets the same share of what is left."""
SIGN_PART, SIGN_SHARE = 0.26, 0.5
"""Likewise of the sign test, whose first looks are the ones that can bound anything."""


@dataclass(frozen=True)
class Look:
    """How many pairs it sees, and the error of each of its intervals, both sides together.

    Attributes:
        sign_error: 0 where there is no interval of the sign test.
    """

    pairs: int
    student_error: float
    sign_error: float


def planned_looks(*, confidence: float = CONFIDENCE) -> Iterator[Look]:
    """Looks after 3, 5, 7, 10, 14, 20, 28, 40, ... pairs, without end.

    Args:
        confidence: of all of them together.
    """
    pairs, signed = FIRST_PAIRS, 0
    for place in itertools.count():
        student = (1 - confidence) * STUDENT_PART * STUDENT_SHARE * (1 - STUDENT_SHARE) ** place
        sign = (1 - confidence) * SIGN_PART * SIGN_SHARE * (1 - SIGN_SHARE) ** signed if pairs >= SIGNED_PAIRS else 0.0
        yield Look(pairs, student, sign)
        signed += pairs >= SIGNED_PAIRS
        pairs = max(pairs + 1, math.ceil(GROWTH * pairs))


def looks(pairs: int, *, ended: bool) -> Iterator[Look]:
    """Each look that so many pairs allow.

    Args:
        pairs: so far.
        ended: no more will come: what is there counts as the next look.
    """
    seen = 0
    for look in planned_looks():
        if look.pairs > pairs:
            if ended and seen < pairs and pairs >= FIRST_PAIRS:
                yield replace(look, pairs=pairs)
            return
        seen = look.pairs
        yield look


def effect_bounds(effects: Sequence[float], look: Look) -> tuple[float, float]:
    """Interval of the true log ratio.

    Args:
        effects: as many as the look sees.
        look: says with what error it may miss.
    """
    values = np.sort(np.asarray(effects, dtype=np.float64))
    quantile = student_quantile(1 - look.student_error / 2, values.size - 1)
    half = quantile * float(values.std(ddof=1)) / math.sqrt(values.size)
    low, high = float(values.mean()) - half, float(values.mean()) + half
    outside = _signs_outside(values.size, look.sign_error / 2)
    if outside >= 0:
        low, high = max(low, float(values[outside])), min(high, float(values[-1 - outside]))
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
    for look in looks(len(effects), ended=ended):
        seen = effects[: look.pairs]
        low, high = effect_bounds(seen, look)
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


@functools.cache
def _signs_outside(count: int, tail: float) -> int:
    """The largest k with P(at most k of `count` fair coins show heads) <= tail; -1 where there is none."""
    total = 0
    for heads in range(count + 1):
        total += math.comb(count, heads)
        if total > tail * 2**count:
            return heads - 1
    return count


def _estimate(effects: Sequence[float], low: float, high: float) -> Estimate:
    middle = min(max(hodges_lehmann(np.asarray(effects)), low), high) if effects else 0.0
    return Estimate(
        median=math.exp(middle),
        low=math.exp(low),
        high=math.exp(high) if high < math.log(np.finfo(np.float64).max) else float(np.finfo(np.float64).max),
        samples=max(1, len(effects)),
    )
