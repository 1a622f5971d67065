"""How much more time would probably settle an open verdict.

The pairs so far are taken as normal. Their true ratio and scatter are drawn as these pairs leave them open, the pairs
to come are drawn from that, and the planned looks are taken: the forecast is the first look at which `LIKELY` of the
draws have a clear answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from serve.guard.process_pairs import FIRST_PAIRS, planned_looks, student_quantile

LIKELY = 0.8
DRAWS = 2000
MOST_PAIRS = 400
"""Beyond that nobody waits: about an hour of a small model."""


def pairs_to_settle(effects: Sequence[float], *, max_ratio: float) -> int | None:
    """Number of pairs, those so far included, that would probably settle it; None where more than `MOST_PAIRS`.

    Args:
        effects: log ratios of the pairs so far; fewer than `FIRST_PAIRS` need that many at least, and say no more.
        max_ratio: largest acceptable ratio.
    """
    values = np.asarray(effects, dtype=np.float64)
    count = int(values.size)
    if count < FIRST_PAIRS:
        return FIRST_PAIRS
    generator = np.random.default_rng(0)
    degrees = count - 1
    spread = np.sqrt(values.var(ddof=1) * degrees / generator.chisquare(degrees, DRAWS))
    true = values.mean() + spread / math.sqrt(count) * generator.standard_normal(DRAWS)
    settled = np.zeros(DRAWS, dtype=bool)
    total, seen = np.full(DRAWS, values.sum()), count
    for look in itertools.takewhile(lambda look: look.pairs <= MOST_PAIRS, planned_looks()):
        if look.pairs <= count:
            continue
        more = look.pairs - seen
        total += more * true + math.sqrt(more) * spread * generator.standard_normal(DRAWS)
        seen = look.pairs
        half = student_quantile(1 - look.student_error / 2, seen - 1) * spread / math.sqrt(seen)
        settled |= np.abs(total / seen - math.log(max_ratio)) > half
        if settled.mean() >= LIKELY:
            return seen
    return None
