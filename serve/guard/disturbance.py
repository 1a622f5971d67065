"""Blocks that somebody disturbed: found without a look at their times, and left out as pairs.

What a hypervisor takes from a virtual machine ("steal") is in no count of a thread's waits and cannot be subtracted; a
process that was put off the CPU finds its caches used by others. Both are counted beside every sample, and a block
counts as disturbed for what happened on either side, so that leaving it out favours none.

Where everything is disturbed, nothing is special: a pair of processes keeps at least half of its blocks.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from serve.bench.measurement import Sample

STOLEN_SHARE = 0.01
"""Of a block's time; the kernel counts in steps of 10 ms, so that most blocks have none."""
PREEMPTIONS = 10
"""Of the computing thread in a block of 100 ms: the system's own timers cause half of that."""
JUMP = 1.5
"""Over the median of the same processes: what is usual there is no disturbance."""

Block = Sequence[Sample]
"""Samples of one block, one for each side."""


def undisturbed(blocks: Sequence[Block]) -> list[Block]:
    """Those of one pair of processes that count.

    Args:
        blocks: of one pair; in the order of time.
    """
    kept = list(blocks)
    for severity, allowed in ((_stolen, STOLEN_SHARE), (_preempted, PREEMPTIONS)):
        found = [severity(block) for block in blocks]
        limit = max(allowed, JUMP * statistics.median(found)) if found else allowed
        kept = [block for block in kept if severity(block) <= limit]
    # Two measures may leave out different halves.
    return kept if 2 * len(kept) >= len(blocks) else list(blocks)


def _stolen(block: Block) -> float:
    return max((sample.stolen_s or 0.0) / sample.wall_s for sample in block)


def _preempted(block: Block) -> float:
    return max(sample.preemptions or 0 for sample in block)
