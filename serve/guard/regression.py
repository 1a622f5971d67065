"""Is it slower than the reference? A guard that says "inconclusive" rather than guess.

Each metric is judged at the planned looks of `serve.guard.sequential`, and keeps the first clear answer. pass: the
whole interval of the time ratio lies at or below the threshold. regression: all of it lies above. What is neither when
the budget is spent is inconclusive; it exits like a regression, never like a pass.

Every verdict rests on at least two pairs of processes, started one after the other: what a process owes to luck for
its whole life is evened out by starting anew, not by measuring longer, and no interval of one session shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

from serve.bench.benchmark import Benchmark, block_values, run_benchmark
from serve.bench.crash import MeasuringProcessDied
from serve.bench.measurement import Sample
from serve.bench.statistics import Estimate
from serve.bench.time_budget import CHECK_S
from serve.bench.workload import Workload, make_workload
from serve.guard.costs import check_load, judge_memory
from serve.guard.machine_lock import measuring_alone
from serve.guard.sequential import look_confidence, looks, planned_looks, signed_rank_ratio
from serve.guard.tokens import TokenAgreement, compare_tokens, is_upgrade, require_same_model
from serve.runtimes.runtime import RunOptions
from shearling.console import log
from shearling.errors import CheckFailed, UsageError
from shearling.strict_json import Document
from shearling.target import Target

# Net of what other processes took, where that is known (`serve.visitor.waiting`): a rival slows the two sides of a pair
# by different amounts, which is noise to the ratio and no fault of the candidate.
GUARDED: Mapping[str, Callable[[Sample], float]] = {
    "ttft_s": lambda sample: sample.net_ttft_s,
    "tpot_s": lambda sample: sample.net_tpot_s,
}
SESSION_BLOCKS = 8
"""Short sessions: what processes owe to luck is evened out by their number, and two fit into the first look."""
MINIMUM_SESSIONS = 2
LOAD, MEMORY = "load_s", "peak_memory_bytes"
CHANGED = "Rounding alone can do that, least with --precision fp32; --allow-other-tokens judges the times alone"

CheckOutcome = Literal["pass", "regression", "inconclusive", "changed"]
"""`changed`: it says something else."""
WORST_FIRST: tuple[CheckOutcome, ...] = ("regression", "changed", "inconclusive")


class Verdict(Document):
    """What the guard concluded.

    Attributes:
        outcome: of all metrics together: the worst one.
        outcomes: by metric; those of load time and memory where they have a limit, that of the tokens where the two
            environments differ.
        ratios: candidate over reference, by metric, at the look that decided; intervals hold over all looks together.
        sessions: medians of the decode ratio, one for each pair of processes.
        limits: largest acceptable ratio of each metric.
        blocks: pairs that were measured.
        lost_share: of the wall time that went to other processes, and was subtracted.
        changes: settings that are not those asked for, and why.
        tokens: whether both said the same, where the two environments differ.
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
        try:
            return _measure(candidate, reference, demands=demands, options=options, workload=workload)
        except MeasuringProcessDied as crash:
            if crash.other is None:
                raise
            change = f"measured with {crash.other.flag}, because without it {crash.where}: {crash.message}"
            log.print(change, markup=False)
            verdict, benchmark = _measure(
                candidate, reference, demands=demands, options=crash.other.options, workload=workload
            )
            return verdict.model_copy(update={"changes": (change, *verdict.changes)}), benchmark


def _measure(
    candidate: Target, reference: Target, *, demands: Demands, options: RunOptions, workload: Workload
) -> tuple[Verdict, Benchmark]:
    def clear(samples: Sequence[Sample]) -> bool:
        return judge(samples, max_ratio=demands.max_ratio, ended=False).outcome != "inconclusive"

    benchmark = run_benchmark(
        [reference, candidate],
        options=options,
        workload=workload,
        enough=clear,
        require=lambda found: require_same_model(found, allow_other=demands.allow_other_tokens),
    )
    verdict = judge(benchmark.samples, max_ratio=demands.max_ratio)
    outcomes, ratios, limits = dict(verdict.outcomes), dict(verdict.ratios), dict(verdict.limits)
    if demands.max_memory_ratio is not None:
        limits[MEMORY] = demands.max_memory_ratio
        outcomes[MEMORY], ratios[MEMORY] = judge_memory(benchmark, max_ratio=limits[MEMORY])
    if demands.max_load_ratio is not None:
        limits[LOAD] = demands.max_load_ratio
        outcomes[LOAD], ratios[LOAD] = check_load(
            benchmark, max_ratio=limits[LOAD], budget_s=workload.budget_s or CHECK_S
        )
    tokens = None
    if is_upgrade([subject.deployment for subject in benchmark.subjects]):
        tokens = compare_tokens(benchmark.samples, allowed=demands.allow_other_tokens)
        outcomes["tokens"] = "pass" if tokens.kept else "changed"
    found = {
        "outcome": worst(outcomes.values()),
        "outcomes": outcomes,
        "ratios": ratios,
        "limits": limits,
        "changes": benchmark.changes,
        "tokens": tokens,
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
    outcomes: dict[str, CheckOutcome] = {}
    ratios: dict[str, Estimate] = {}
    for name, value in GUARDED.items():
        outcomes[name], ratios[name] = _judge_metric(samples, value, max_ratio=max_ratio, ended=ended)
    wall_s = sum(sample.ttft_s + sum(sample.gaps_s) for sample in samples)
    return Verdict(
        outcome=worst(outcomes.values()),
        outcomes=outcomes,
        ratios=ratios,
        sessions=_session_medians(samples),
        max_ratio=max_ratio,
        limits=dict.fromkeys(GUARDED, max_ratio),
        blocks=len(samples) // 2,
        lost_share=sum(sample.lost_first_s + sample.lost_decode_s for sample in samples) / wall_s,
    )


def worst(outcomes: Iterable[CheckOutcome]) -> CheckOutcome:
    """A regression outweighs other tokens, those what is inconclusive, and that a pass."""
    found = set(outcomes)
    return next((outcome for outcome in WORST_FIRST if outcome in found), "pass")


def require_pass(verdict: Verdict) -> None:
    """Turn anything but a pass into an error.

    Raises:
        CheckFailed: a regression, other tokens, or inconclusive.
    """
    if verdict.outcome == "pass":
        return
    figures = "; ".join(tell_outcomes(verdict))
    if verdict.outcome == "changed":
        raise CheckFailed(f"the output changed ({figures})", remedy=CHANGED)
    remedy = (
        "Measure longer (--budget), with one thread, or on a quieter machine"
        if verdict.outcome == "inconclusive"
        else None
    )
    raise CheckFailed(
        f"latency {verdict.outcome} against {verdict.max_ratio:g} after {verdict.blocks} pairs ({figures})",
        remedy=remedy,
    )


def tell_outcomes(verdict: Verdict) -> list[str]:
    """Each metric with its ratio and its outcome; what changed is told last."""
    lines = [
        f"{name} {show_ratio(ratio)}{_limit(verdict, name)}: {verdict.outcomes[name]}"
        for name, ratio in verdict.ratios.items()
    ]
    if verdict.tokens is not None:
        lines.append(f"tokens: {verdict.tokens.told()}")
    return [*lines, *verdict.changes]


def _limit(verdict: Verdict, name: str) -> str:
    limit = verdict.limits.get(name, verdict.max_ratio)
    return "" if limit == verdict.max_ratio else f" against {limit:g}"


def show_ratio(ratio: Estimate) -> str:
    """The estimate and its interval, where there is one."""
    bounds = f"{ratio.low:.3f}, {ratio.high:.3f}" if math.isfinite(ratio.low) and ratio.low > 0 else "too few pairs"
    return f"{ratio.median:.3f} [{bounds}]"


def _judge_metric(
    samples: Sequence[Sample], value: Callable[[Sample], float], *, max_ratio: float, ended: bool
) -> tuple[CheckOutcome, Estimate]:
    # Only the looks that were planned: judging after every block would find, sooner or later, an interval that pleases.
    # The first clear answer is kept, for the looks share the error: a later one may not take it back.
    reference, candidate = (block_values(samples, subject, value) for subject in (0, 1))
    sessions = [sample.session for sample in samples if sample.subject == 0]
    ratio = signed_rank_ratio(candidate, reference, confidence=look_confidence())
    for count in looks(len(reference), ended=ended):
        if len(set(sessions[:count])) < MINIMUM_SESSIONS:
            continue
        ratio = signed_rank_ratio(candidate[:count], reference[:count], confidence=look_confidence())
        if ratio.high <= max_ratio:
            return "pass", ratio
        if ratio.low > max_ratio:
            return "regression", ratio
    return "inconclusive", ratio


def _session_medians(samples: Sequence[Sample]) -> tuple[float, ...]:
    medians = []
    for session in sorted({sample.session for sample in samples}):
        own = [sample for sample in samples if sample.session == session]
        sides = [block_values(own, subject, GUARDED["tpot_s"]) for subject in (0, 1)]
        medians.append(signed_rank_ratio(sides[1], sides[0]).median)
    return tuple(medians)
