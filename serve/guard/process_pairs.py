"""What blocks of several pairs of processes allow to conclude, and when.

A process owes part of its speed to luck, for life: where its memory lies. Blocks of one pair share that luck, so an
interval that counts blocks alone shrinks to nothing around what two processes drew. The log ratio of block b of pair p
is taken as ratio + luck_p + noise_pb, and the interval of the ratio has a part for each, added in quadrature because
they are independent:

- noise: Wilcoxon's signed-rank interval over all blocks (`serve.guard.sequential`), exact for independent noise that
  scatters symmetrically, whatever its distribution; up to 29 % of the blocks may be outliers;
- luck: Student's t times its standard deviation over the square root of the number of pairs. The deviation comes from
  how far the pairs' own centres lie apart, beyond what the noise explains. Few pairs cannot know it, so `USUAL_LUCK`
  counts as `USUAL_DEGREES` more of them, and their degrees of freedom (Smyth, Linear models and empirical Bayes, SAGMB
  3, 2004).

So the error is kept exactly for independent noise and the usual luck, and not proven for more. At the limit itself,
where errors are most likely, simulated checks erred in at most 5 % with luck of up to 0.024, and in 8 % where besides
each block's noise was nine tenths that of the block before (tests/serve/guard/test_process_pairs.py).

Looks are planned: after 3 pairs, then after every growth by 0.4, without end. The error is divided among them
(Bonferroni) in a geometric series, which sums to 1 however many follow. So a longer budget continues the same test: it
adds looks and changes none. Where time ends between two looks, the next one is taken early.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from serve.bench.statistics import CONFIDENCE, Estimate
from serve.guard.calibration import CONSISTENT
from serve.guard.sequential import hodges_lehmann, signed_rank_bounds

Outcome = Literal["pass", "regression", "inconclusive"]
Pairs = Sequence[Sequence[float]]
"""Log ratios of candidate to reference: one sequence of blocks for each pair of processes, in the order of time."""

FIRST_PAIRS = 3
GROWTH = 1.4
FIRST_SHARE = 0.3
"""Of the error, for the first look; each later one gets the same share of what is left."""
USUAL_LUCK, USUAL_DEGREES = 0.015, 3
"""Standard deviation of the log ratio of two processes of one model, and how many pairs that is worth. It was
0.004 to 0.007 on a Zen 4 where both sides took turns (docs/log/latency.md); other machines may have more.
"""


@dataclass(frozen=True)
class Look:
    """How many pairs it sees, and its error, both sides together."""

    pairs: int
    error: float


@dataclass(frozen=True)
class Scatter:
    """Of one metric; standard deviations of log ratios.

    Attributes:
        noise: of a block around the centre of its pair.
        luck: of a pair's centre, beyond what the noise explains; see `USUAL_LUCK`.
        degrees: of freedom of `luck`.
    """

    noise: float
    luck: float
    degrees: int


def planned_looks(*, confidence: float = CONFIDENCE) -> Iterator[Look]:
    """Looks after 3, 5, 7, 10, 14, 20, 28, 40, ... pairs, without end.

    Args:
        confidence: of all of them together.
    """
    pairs = FIRST_PAIRS
    for place in itertools.count():
        yield Look(pairs, (1 - confidence) * FIRST_SHARE * (1 - FIRST_SHARE) ** place)
        pairs = math.ceil(GROWTH * pairs)


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


def pair_centres(pairs: Pairs) -> list[float]:
    """The Hodges-Lehmann estimate of each pair."""
    return [hodges_lehmann(np.asarray(blocks)) for blocks in pairs]


def scatter_of(pairs: Pairs) -> Scatter:
    """Tell noise and luck apart.

    Args:
        pairs: at least one, of at least two blocks each.
    """
    centres = pair_centres(pairs)
    deviations = [
        abs(value - centre) * math.sqrt(len(blocks) / (len(blocks) - 1))
        for blocks, centre in zip(pairs, centres, strict=True)
        for value in blocks
    ]
    noise = float(CONSISTENT * np.median(deviations))
    explained = noise**2 * float(np.mean([1 / len(blocks) for blocks in pairs]))
    degrees = len(pairs) - 1
    seen = max(0.0, float(np.var(centres, ddof=1)) - explained) if degrees else 0.0
    luck = math.sqrt((USUAL_DEGREES * USUAL_LUCK**2 + degrees * seen) / (USUAL_DEGREES + degrees))
    return Scatter(noise, luck, USUAL_DEGREES + degrees)


def luck_bound(scatter: Scatter, *, pairs: int, error: float) -> float:
    """Half of the interval that luck alone makes, as a log ratio."""
    return student_quantile(1 - error / 2, scatter.degrees) * scatter.luck / math.sqrt(pairs)


def ratio_bounds(pairs: Pairs, *, error: float) -> tuple[float, float]:
    """Interval of the true log ratio; unbounded where there are too few blocks.

    Args:
        pairs: at least one, of at least two blocks each.
        error: probability that it misses, both sides together.
    """
    blocks = np.concatenate([np.asarray(own) for own in pairs])
    low, high = signed_rank_bounds(blocks, error=error)
    centre, luck = hodges_lehmann(blocks), luck_bound(scatter_of(pairs), pairs=len(pairs), error=error)
    return centre - math.hypot(centre - low, luck), centre + math.hypot(high - centre, luck)


def judge_pairs(pairs: Pairs, *, max_ratio: float, ended: bool) -> tuple[Outcome, Estimate]:
    """Judge pairs at the planned looks; the first clear answer is kept, for the looks share the error.

    Args:
        pairs: see `Pairs`; at least two blocks each.
        max_ratio: largest acceptable ratio.
        ended: no more pairs will come.

    Returns:
        The outcome, and the ratio with the interval of the look that decided, or of the last one.
    """
    limit, found = math.log(max_ratio), _estimate(pairs, -math.inf, math.inf)
    for look in looks(len(pairs), ended=ended):
        low, high = ratio_bounds(pairs[: look.pairs], error=look.error)
        found = _estimate(pairs[: look.pairs], low, high)
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


def _estimate(pairs: Pairs, low: float, high: float) -> Estimate:
    blocks = np.asarray([value for own in pairs for value in own])
    return Estimate(
        median=math.exp(hodges_lehmann(blocks)) if blocks.size else 1.0,
        low=math.exp(low),
        high=math.exp(high) if math.isfinite(high) else float(np.finfo(np.float64).max),
        samples=blocks.size,
    )
