"""Blocks that somebody disturbed: found without a look at their times, and left out as pairs.

What a hypervisor takes from a virtual machine ("steal") is in no count of a thread's waits and cannot be subtracted; a
process that was put off the CPU finds its caches used by others. Both are counted beside every sample, and added up
over both sides of a block: if the sides changed places the same blocks would be left out, so that it favours none.

Where everything is disturbed nothing is special, and everything counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from serve.bench.measurement import Sample
from serve.bench.time_budget import SHORTEST_BLOCKS

STOLEN_SHARE = 0.005
"""Of a block's time; the kernel counts in steps of 10 ms, so that most blocks have none."""
PREEMPTIONS = 20
"""In a block of both sides, of 400 ms or so: the system's own timers cause half of that, and turns as much again."""
JUMP = 1.5
"""Over the median of the same processes: what is usual there is no disturbance."""

Block = Sequence[Sample]
"""Samples of one block, one for each side."""


def undisturbed(blocks: Sequence[Block]) -> list[Block]:
    """Those of one pair of processes that count.

    Args:
        blocks: of one pair; in the order of time.
    """
    usual = statistics.median(_preempted(block) for block in blocks) if blocks else 0
    kept = [
        block
        for block in blocks
        if _stolen(block) <= STOLEN_SHARE and _preempted(block) <= max(PREEMPTIONS, JUMP * usual)
    ]
    return kept if len(kept) >= SHORTEST_BLOCKS else list(blocks)


def _stolen(block: Block) -> float:
    return sum(sample.stolen_s or 0.0 for sample in block) / sum(sample.wall_s for sample in block)


def _preempted(block: Block) -> float:
    return sum(sample.preemptions or 0 for sample in block)
