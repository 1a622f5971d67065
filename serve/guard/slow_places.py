"""Tokens that are slow at the same places of every generation.

The time per token leaves its slower two fifths out, see `Sample.usual_gap_s`: a disturbance hits some tokens, and no
counter says which. But it hits others in every generation, while a runtime that repacks weights or moves its cache does
so at the same ones. So here a place counts by its median over the generations of a process, and all places count.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from serve.bench.measurement import Sample
from serve.bench.statistics import CONFIDENCE, Estimate
from serve.guard.process_pairs import FIRST_PAIRS, student_quantile

Block = Sequence[Sample]
"""A reference (first) and a candidate, measured side by side."""


def slow_places_ratio(pairs: Sequence[Sequence[Block]]) -> Estimate | None:
    """Candidate over reference, with Student's interval over pairs of processes, whose luck is in it.

    Args:
        pairs: of processes, the blocks of each.

    Returns:
        None where nothing can be said: of few pairs, where generations differ in length, or where several tokens came
        of one reading.
    """
    samples = [sample for blocks in pairs for block in blocks for sample in block]
    alike = len({len(sample.gaps_s) for sample in samples}) == 1
    if len(pairs) < FIRST_PAIRS or not alike or any(sample.guessed for sample in samples):
        return None
    logs = [math.log(_usual_profile(blocks, side=1) / _usual_profile(blocks, side=0)) for blocks in pairs]
    centre, scatter = statistics.fmean(logs), statistics.stdev(logs)
    half = student_quantile((1 + CONFIDENCE) / 2, len(logs) - 1) * scatter / math.sqrt(len(logs))
    low, median, high = (math.exp(value) for value in (centre - half, centre, centre + half))
    return Estimate(median=median, low=low, high=high, samples=len(logs))


def _usual_profile(blocks: Sequence[Block], *, side: int) -> float:
    """Mean over the places of a generation of the median token there, in usual tokens of the reference's block: so
    what slows a whole block is in none of them.
    """
    generations = [[gap_s / block[0].usual_gap_s for gap_s in block[side].gaps_s] for block in blocks]
    return statistics.fmean(map(statistics.median, zip(*generations, strict=True)))
