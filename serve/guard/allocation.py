"""What the time is better spent on: new processes, or more blocks of those that run.

The variance of a mean over m pairs of processes with n blocks each is (between + within / n) / m, and it costs
m (setup + n block). The best n for any m is sqrt(setup / block * within / between) (Cochran, Sampling Techniques,
10.6).

The within part comes from the blocks of each pair around their own centre. For the between part, which few pairs do not
show, stands what a verdict can afford: pairs decide within few looks only if they scatter by no more than a third of
their distance from the limit. That distance takes the pairs' own scatter in, too, so pairs that differ much get few
blocks and many successors. It is without sign, as `serve.guard.process_pairs` needs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.guard.calibration import CONSISTENT

FIRST_BLOCKS = 6
"""Of the first pair, when nothing is known."""
FEWEST, MOST = 3, 24
"""Blocks: three have a median; more than two dozen would put all on one pair."""
AFFORDABLE = 0.3
"""Scatter between pairs over their distance from the limit."""
SMALLEST = 0.004
"""Scatter between pairs that is expected at least, as a log ratio."""


@dataclass(frozen=True)
class PairScatter:
    """One metric of the pairs so far.

    Attributes:
        within: standard deviation of a block's log ratio around its pair's effect.
        distance: root mean square of the effects' distances from the limit.
    """

    within: float
    distance: float


def scatter_of(pairs: Sequence[Sequence[float]], effects: Sequence[float], *, limit: float) -> PairScatter:
    """Scatter of one metric.

    Args:
        pairs: log ratios of the blocks, one sequence for each pair of processes; at least one.
        effects: of the pairs.
        limit: largest acceptable log ratio.
    """
    deviations = [
        abs(value - effect) * math.sqrt(len(values) / (len(values) - 1))
        for values, effect in zip(pairs, effects, strict=True)
        if len(values) > 1
        for value in values
    ]
    distances = np.asarray(effects) - limit
    return PairScatter(
        within=float(CONSISTENT * np.median(deviations)) if deviations else 0.0,
        distance=float(np.sqrt(np.mean(distances**2))),
    )


def next_blocks(scatters: Sequence[PairScatter], *, setup_blocks: float) -> int:
    """Blocks of the next pair of processes.

    Args:
        scatters: of the metrics that are still open.
        setup_blocks: what new processes cost, in blocks.
    """
    if not scatters or not setup_blocks:
        return FIRST_BLOCKS
    best = max(
        math.sqrt(setup_blocks) * scatter.within / max(SMALLEST, AFFORDABLE * scatter.distance) for scatter in scatters
    )
    return min(MOST, max(FEWEST, round(best)))
