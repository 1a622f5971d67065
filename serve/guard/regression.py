"""Is it slower than the reference? A guard that says "inconclusive" rather than guess.

Each metric is judged at the planned looks of `serve.guard.process_pairs`, and keeps the first clear answer. pass: the
whole interval of the time ratio lies at or below the threshold. regression: all of it lies above. What is neither when
the budget is spent is inconclusive; it exits like a regression, never like a pass, and says how much more time would
probably settle it.

Every verdict rests on at least three pairs of processes, started one after the other: what a process owes to luck for
its whole life is evened out by starting anew, not by measuring longer, and no interval of one session shows it.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

from serve.bench.benchmark import Benchmark, run_benchmark
from serve.bench.measurement import Sample, SessionPlan
from serve.bench.statistics import Estimate
from serve.bench.time_budget import CHECK_S
from serve.bench.workload import Workload, make_workload
from serve.guard.costs import check_load, judge_memory, load_settling_budget_s
from serve.guard.judging import (
    GUARDED,
    Judgement,
    counting_blocks,
    is_settled,
    judge_metrics,
    paired_blocks,
    plan_blocks,
)
from serve.guard.machine_lock import measuring_alone
from serve.guard.other_settings import with_other_settings
from serve.guard.process_pairs import FIRST_PAIRS, pair_centres
from serve.guard.sequential import planned_looks
from serve.guard.tokens import TokenAgreement, compare_tokens, is_upgrade, require_same_model
from serve.runtimes.runtime import RunOptions
from shearling.errors import UsageError
from shearling.strict_json import Document
from shearling.target import Target

SESSION_BLOCKS = 8
"""Of a baseline's sessions; those of a check are as long as `serve.guard.allocation` says."""
TURN_S = 0.02
"""Shorter than what disturbs a machine, and longer than it takes to fill a cache."""
ROUND_S = 10.0
"""To which a budget that is proposed is rounded."""
EVERY_TOKEN, LOAD, MEMORY, TOKENS = "every_token_s", "load_s", "peak_memory_bytes", "tokens"

CheckOutcome = Literal["pass", "regression", "inconclusive", "changed"]
"""`changed`: it says something else."""
WORST_FIRST: tuple[CheckOutcome, ...] = ("regression", "changed", "inconclusive")


class Verdict(Document):
    """What the guard concluded.

    Attributes:
        outcome: of all metrics together: the worst one.
        outcomes: by metric; those of load time and memory where they have a limit, that of the tokens where the two
            environments differ, and that of all tokens' times where some are slow at the same places of every
            generation (`serve.guard.slow_places`), which the time per token does not see.
        ratios: candidate over reference, by metric, at the look that decided; intervals hold over all looks together.
        sessions: the decode ratio of each pair of processes.
        limits: largest acceptable ratio of each metric.
        blocks: pairs that were measured.
        lost_share: of the wall time that went to other processes.
        changes: settings that are not those asked for, and why.
        tokens: whether both said the same, where the two environments differ.
        set_aside: pairs of samples that were disturbed, and do not count; see `serve.guard.disturbance`.
        measured_s: how long it took, from the first process on.
        settling_budget_s: a budget that would probably settle what is inconclusive; None where none would.
        instructions: of the candidate over the reference's; None where the processor or the system does not count.
        past: measurements of a history that it was judged by; None where a reference ran beside it.
        huge_shares: of reference and candidate, the least share that a process got of the huge pages that it could use;
            nothing where they were not asked for.
    """

    outcome: CheckOutcome
    outcomes: dict[str, CheckOutcome]
    ratios: dict[str, Estimate]
    sessions: tuple[float, ...]
    max_ratio: float
    limits: dict[str, float] = pydantic.Field(default_factory=dict)
    blocks: int
    lost_share: float
    changes: tuple[str, ...] = ()
    tokens: TokenAgreement | None = None
    set_aside: int = 0
    measured_s: float = 0.0
    settling_budget_s: float | None = None
    instructions: float | None = None
    past: int | None = None
    huge_shares: dict[str, float] = pydantic.Field(default_factory=dict)


def guard_workload(
    prompt_tokens: int = 64,
    new_tokens: int = 16,
    *,
    budget_s: float = CHECK_S,
    batch: int = 1,
    trace: Path | None = None,
    seed: int = 0,
) -> Workload:
    """The workload of a check: short sessions of many short pairs, each phase in a call of its own.

    Args:
        prompt_tokens: see `Workload`.
        new_tokens: see `Workload`.
        budget_s: when to give up; loading included.
        batch: see `Workload`.
        trace: see `read_trace`.
        seed: of the prompts.

    Raises:
        UsageError: see `make_workload`.
    """
    sessions = -(-planned_looks()[-1] // SESSION_BLOCKS)
    return make_workload(
        prompt_tokens,
        new_tokens,
        repeats=SESSION_BLOCKS,
        sessions=sessions,
        budget_s=budget_s,
        separate_phases=True,
        turn_s=TURN_S,
        batch=batch,
        trace=trace,
        seed=seed,
    )


@dataclass(frozen=True)
class Demands:
    """What a candidate has to keep.

    Attributes:
        max_ratio: largest acceptable candidate time over reference time, such as 1.05.
        max_load_ratio: likewise of the time to load; None does not measure it.
        max_memory_ratio: likewise of peak memory; None does not judge it.
        allow_other_tokens: it may say something else, or be another model, in another environment.
    """

    max_ratio: float = 1.05
    max_load_ratio: float | None = None
    max_memory_ratio: float | None = None
    allow_other_tokens: bool = False

    def check(self) -> None:
        """Refuse limits that are not positive numbers.

        Raises:
            UsageError: names the value.
        """
        for limit in (self.max_ratio, self.max_load_ratio, self.max_memory_ratio):
            if limit is not None:
                require_threshold(limit)


def check_regression(
    candidate: Target, reference: Target, *, demands: Demands, options: RunOptions, workload: Workload
) -> tuple[Verdict, Benchmark]:
    """Measure two deployments interleaved until the verdict is clear or the budget is spent.

    No other check measures meanwhile on this machine. Where a measuring process dies, one other setting is tried, and
    the verdict says so.

    Args:
        candidate: what may have become slower.
        reference: what it is compared with.
        demands: what it has to keep.
        options: the same for both; with one thread, time that other processes took is subtracted.
        workload: see `guard_workload`.

    Raises:
        UsageError: a threshold that is not positive, or another model in another environment.
        RuntimeCrashed: a process died, and other settings did not help, or there were none to try.
    """
    demands.check()
    with measuring_alone():
        (verdict, benchmark), changes = with_other_settings(
            lambda tried: _measure(candidate, reference, demands=demands, options=tried, workload=workload), options
        )
    return verdict.model_copy(update={"changes": (*changes, *verdict.changes)}), benchmark


def _measure(
    candidate: Target, reference: Target, *, demands: Demands, options: RunOptions, workload: Workload
) -> tuple[Verdict, Benchmark]:
    def clear(samples: Sequence[Sample]) -> bool:
        return is_settled(judge_metrics(paired_blocks(samples), max_ratio=demands.max_ratio, ended=False))

    benchmark = run_benchmark(
        [reference, candidate],
        options=options,
        workload=workload,
        enough=clear,
        plan=SessionPlan(FIRST_PAIRS, functools.partial(plan_blocks, max_ratio=demands.max_ratio), counting_blocks),
        require=lambda found: require_same_model(found, allow_other=demands.allow_other_tokens),
    )
    verdict = judge(benchmark.samples, max_ratio=demands.max_ratio)
    outcomes, ratios, limits = dict(verdict.outcomes), dict(verdict.ratios), dict(verdict.limits)
    settling_s = verdict.settling_budget_s
    if demands.max_memory_ratio is not None:
        limits[MEMORY] = demands.max_memory_ratio
        outcomes[MEMORY], ratios[MEMORY] = judge_memory(benchmark, max_ratio=limits[MEMORY])
    if demands.max_load_ratio is not None:
        limits[LOAD] = demands.max_load_ratio
        budget_s = workload.budget_s or CHECK_S
        outcomes[LOAD], ratios[LOAD] = check_load(benchmark, max_ratio=limits[LOAD], budget_s=budget_s)
        if outcomes[LOAD] == "inconclusive" and verdict.outcome == "pass":
            settling_s = rounded_up(load_settling_budget_s(ratios[LOAD], budget_s=budget_s))
    tokens = None
    if is_upgrade([subject.deployment for subject in benchmark.subjects]):
        tokens = compare_tokens(benchmark.samples, allowed=demands.allow_other_tokens)
        outcomes[TOKENS] = "pass" if tokens.kept else "changed"
    found = {
        "outcome": worst(outcomes.values()),
        "outcomes": outcomes,
        "ratios": ratios,
        "limits": limits,
        "changes": benchmark.changes,
        "tokens": tokens,
        "settling_budget_s": settling_s,
        "huge_shares": benchmark.huge_shares(("reference", "candidate")),
    }
    return verdict.model_copy(update=found), benchmark


def require_threshold(max_ratio: float) -> None:
    """Refuse a threshold that is not a positive number.

    Raises:
        UsageError: it is not.
    """
    if not (math.isfinite(max_ratio) and max_ratio > 0):
        raise UsageError(
            f"the threshold {max_ratio} is not a positive number", remedy="Give --max-ratio 1.05, for example"
        )


def judge(samples: Sequence[Sample], *, max_ratio: float, ended: bool = True) -> Verdict:
    """Judge whole blocks of a reference (subject 0) and a candidate (subject 1).

    Args:
        samples: in the order of time.
        max_ratio: see `check_regression`.
        ended: no more blocks will come.
    """
    paired = paired_blocks(samples)
    judged = judge_metrics(paired, max_ratio=max_ratio, ended=ended)
    outcomes: dict[str, CheckOutcome] = {name: judgement.outcome for name, judgement in judged.items()}
    ratios = {name: judgement.ratio for name, judgement in judged.items()}
    if outcomes["tpot_s"] == "pass" and paired.every_token is not None and paired.every_token.low > max_ratio:
        outcomes[EVERY_TOKEN], ratios[EVERY_TOKEN] = "regression", paired.every_token
    measured_s = max((sample.started_s + sample.total_s for sample in samples), default=0.0)
    wall_s = sum(sample.ttft_s + sum(sample.gaps_s) for sample in samples)
    return Verdict(
        outcome=worst(outcomes.values()),
        outcomes=outcomes,
        ratios=ratios,
        sessions=tuple(math.exp(centre) for centre in pair_centres(paired.logs["tpot_s"])),
        max_ratio=max_ratio,
        limits=dict.fromkeys(GUARDED, max_ratio),
        blocks=len(samples) // 2,
        lost_share=sum(sample.lost_first_s + sample.lost_decode_s for sample in samples) / wall_s,
        set_aside=paired.set_aside,
        measured_s=measured_s,
        settling_budget_s=_settling_budget_s(
            judged, pairs=len({sample.session for sample in samples}), measured_s=measured_s
        ),
        instructions=_instructions(samples),
    )


def _settling_budget_s(judged: Mapping[str, Judgement], *, pairs: int, measured_s: float) -> float | None:
    needed = [judgement.pairs_needed for judgement in judged.values() if judgement.outcome == "inconclusive"]
    if is_settled(judged) or not pairs or None in needed:
        return None
    # One pair to spare: the last one must not be cut by the end of the time.
    most = max(count for count in needed if count is not None) + 1
    return rounded_up(most * measured_s / pairs)


def rounded_up(seconds: float | None) -> float | None:
    """A budget, in tens of seconds; None stays so."""
    return None if seconds is None else math.ceil(seconds / ROUND_S) * ROUND_S


def _instructions(samples: Sequence[Sample]) -> float | None:
    counts: tuple[list[int], list[int]] = ([], [])
    for sample in samples:
        if sample.instructions:
            counts[sample.subject].append(sample.instructions)
    return statistics.median(counts[1]) / statistics.median(counts[0]) if all(counts) else None


def worst(outcomes: Iterable[CheckOutcome]) -> CheckOutcome:
    """A regression outweighs other tokens, those what is inconclusive, and that a pass."""
    found = set(outcomes)
    return next((outcome for outcome in WORST_FIRST if outcome in found), "pass")
