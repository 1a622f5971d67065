"""From samples to an answer for each metric: blocks that count, their log ratios, looks, and what is next.

See `serve.guard.process_pairs` for what the answers promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from serve.bench.measurement import Sample
from serve.bench.statistics import Estimate
from serve.bench.time_budget import SHORTEST_BLOCKS
from serve.guard.allocation import next_blocks
from serve.guard.disturbance import undisturbed
from serve.guard.forecast import pairs_to_settle
from serve.guard.process_pairs import Outcome, Pairs, judge_pairs, scatter_of
from serve.guard.slow_places import slow_places_ratio

# Without what other processes took: a rival slows the two sides of a pair by different amounts, which is noise to the
# ratio and no fault of the candidate. From a first token the waits are subtracted (`serve.visitor.waiting`); of the
# many tokens behind it the faster ones count.
GUARDED: Mapping[str, Callable[[Sample], float]] = {
    "ttft_s": lambda sample: sample.net_ttft_s,
    "tpot_s": lambda sample: sample.usual_gap_s,
}


@dataclass(frozen=True)
class PairedBlocks:
    """Log ratios of candidate (subject 1) to reference (subject 0) in the blocks that count.

    Attributes:
        logs: by metric, one sequence for each pair of processes.
        every_token: the ratio of all tokens, see `serve.guard.slow_places`; None where it cannot be told.
        set_aside: blocks that were disturbed.
    """

    logs: Mapping[str, Pairs]
    every_token: Estimate | None
    set_aside: int


@dataclass(frozen=True)
class Judgement:
    """Of one metric.

    Attributes:
        pairs_needed: pairs of processes that would probably settle it; None where it is settled, or nothing would.
    """

    outcome: Outcome
    ratio: Estimate
    pairs_needed: int | None


def paired_blocks(samples: Sequence[Sample]) -> PairedBlocks:
    """Pair the samples of a reference and a candidate.

    Args:
        samples: whole blocks, in the order of time. A pair of processes that has too few blocks is left out.
    """
    sessions: dict[int, dict[int, list[Sample]]] = {}
    for sample in samples:
        sessions.setdefault(sample.session, {}).setdefault(sample.block, []).append(sample)
    blocks = [[sorted(block, key=lambda item: item.subject) for block in own.values()] for own in sessions.values()]
    kept = [undisturbed(own) for own in blocks if len(own) >= SHORTEST_BLOCKS]
    return PairedBlocks(
        logs={
            name: [[math.log(value(block[1]) / value(block[0])) for block in own] for own in kept]
            for name, value in GUARDED.items()
        },
        every_token=slow_places_ratio(kept),
        set_aside=sum(len(own) for own in blocks if len(own) >= SHORTEST_BLOCKS) - sum(len(own) for own in kept),
    )


def counting_blocks(samples: Sequence[Sample]) -> int:
    """How many blocks of one pair of processes count, see `serve.guard.disturbance`."""
    blocks: dict[int, list[Sample]] = {}
    for sample in samples:
        blocks.setdefault(sample.block, []).append(sample)
    return len(undisturbed(list(blocks.values())))


def judge_metrics(paired: PairedBlocks, *, max_ratio: float, ended: bool) -> dict[str, Judgement]:
    """Judge every metric at the planned looks.

    Args:
        paired: see `paired_blocks`.
        max_ratio: largest acceptable ratio.
        ended: no more will come.
    """
    found = {}
    for name, logs in paired.logs.items():
        outcome, ratio = judge_pairs(logs, max_ratio=max_ratio, ended=ended)
        needed = pairs_to_settle(logs, max_ratio=max_ratio) if ended and outcome == "inconclusive" else None
        found[name] = Judgement(outcome, ratio, needed)
    return found


def is_settled(judged: Mapping[str, Judgement]) -> bool:
    """Whether nothing can change the worst outcome: a regression is one, whatever the other metrics say."""
    outcomes = {judgement.outcome for judgement in judged.values()}
    return "regression" in outcomes or "inconclusive" not in outcomes


def plan_blocks(samples: Sequence[Sample], setup_blocks: float, *, max_ratio: float) -> int:
    """Blocks of the next pair of processes; see `serve.guard.allocation`.

    Args:
        samples: all so far.
        setup_blocks: what new processes cost, in blocks.
        max_ratio: largest acceptable ratio.
    """
    paired = paired_blocks(samples)
    judged = judge_metrics(paired, max_ratio=max_ratio, ended=False)
    scatters = [
        scatter_of(logs) for name, logs in paired.logs.items() if logs and judged[name].outcome == "inconclusive"
    ]
    return next_blocks(scatters, setup_blocks=setup_blocks)
