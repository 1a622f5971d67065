"""What the time is better spent on: new processes, or more blocks of those that run.

The variance of a ratio from m pairs of processes with n blocks each is (luck + noise / n) / m, with both as variances,
and it costs m (setup + n block). The best n for any m is sqrt(setup / block * noise / luck) (Cochran, Sampling
Techniques, 10.6). It depends on how the pairs so far scatter, and not on where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from serve.guard.process_pairs import Scatter

FIRST_BLOCKS = 6
"""Of the first pair, when nothing is known."""
FEWEST, MOST = 3, 12
"""Blocks: three have a median; more than a dozen would put all on few pairs."""


def next_blocks(scatters: Sequence[Scatter], *, setup_blocks: float) -> int:
    """Blocks of the next pair of processes.

    Args:
        scatters: of the metrics that are still open.
        setup_blocks: what new processes cost, in blocks.
    """
    if not scatters or not setup_blocks:
        return FIRST_BLOCKS
    best = max(math.sqrt(setup_blocks) * scatter.noise / scatter.luck for scatter in scatters)
    return min(MOST, max(FEWEST, round(best)))
