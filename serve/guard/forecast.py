"""How much more time would probably settle an open verdict.

Noise and luck of the pairs so far are taken as normal. The true ratio is drawn as these pairs leave it open, the pairs
to come are drawn from that, and the planned looks are taken: the forecast is the first look at which `LIKELY` of the
draws have a clear answer.
"""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np

from serve.guard.process_pairs import FIRST_PAIRS, Pairs, luck_bound, pair_centres, planned_looks, scatter_of

LIKELY = 0.8
DRAWS = 2000
MOST_PAIRS = 400
"""Beyond that nobody waits: about an hour of a small model."""


def pairs_to_settle(pairs: Pairs, *, max_ratio: float) -> int | None:
    """Number of pairs, those so far included, that would probably settle it; None where more than `MOST_PAIRS`.

    Args:
        pairs: those so far; fewer than `FIRST_PAIRS` need that many at least, and say no more.
        max_ratio: largest acceptable ratio.
    """
    count = len(pairs)
    if count < FIRST_PAIRS:
        return FIRST_PAIRS
    scatter, centres = scatter_of(pairs), np.asarray(pair_centres(pairs))
    blocks = float(np.mean([len(own) for own in pairs]))
    generator = np.random.default_rng(0)
    degrees = scatter.degrees
    # What the pairs' centres show of their scatter, and what noise and luck say of it: the larger one.
    expected = math.hypot(scatter.luck, scatter.noise / math.sqrt(blocks))
    spread = max(expected, float(centres.std(ddof=1))) * np.sqrt(degrees / generator.chisquare(degrees, DRAWS))
    true = centres.mean() + spread / math.sqrt(count) * generator.standard_normal(DRAWS)
    settled = np.zeros(DRAWS, dtype=bool)
    total, seen = np.full(DRAWS, centres.sum()), count
    for look in itertools.takewhile(lambda look: look.pairs <= MOST_PAIRS, planned_looks()):
        if look.pairs <= count:
            continue
        more = look.pairs - seen
        total += more * true + math.sqrt(more) * spread * generator.standard_normal(DRAWS)
        seen = look.pairs
        noise = NormalDist().inv_cdf(1 - look.error / 2) * scatter.noise / math.sqrt(seen * blocks)
        half = math.hypot(noise, luck_bound(scatter, pairs=seen, error=look.error)) * spread / expected
        settled |= np.abs(total / seen - math.log(max_ratio)) > half
        if settled.mean() >= LIKELY:
            return seen
    return None
