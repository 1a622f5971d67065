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
from pathlib import Path
from typing import Literal

from serve.bench.benchmark import Benchmark, block_values, run_benchmark
from serve.bench.measurement import Sample
from serve.bench.statistics import Estimate
from serve.bench.time_budget import CHECK_S
from serve.bench.workload import Workload, make_workload
from serve.guard.sequential import MINIMUM, look_confidence, looks, planned_looks, signed_rank_ratio
from serve.runtimes.runtime import RunOptions
from shearling.errors import CheckFailed, UsageError
from shearling.strict_json import Document
from shearling.target import Target

# Net of what other processes took, where that is known (`serve.bench.waiting`): a rival slows the two sides of a pair
# by different amounts, which is noise to the ratio and no fault of the candidate.
GUARDED: Mapping[str, Callable[[Sample], float]] = {
    "ttft_s": lambda sample: sample.net_ttft_s,
    "tpot_s": lambda sample: sample.net_tpot_s,
}
SESSION_BLOCKS = 8
"""Short sessions: what processes owe to luck is evened out by their number, and two fit into the first look."""
MINIMUM_SESSIONS = 2

CheckOutcome = Literal["pass", "regression", "inconclusive"]


class Verdict(Document):
    """What the guard concluded.

    Attributes:
        outcome: of both metrics together: the worse one.
        outcomes: by metric.
        ratios: candidate time over reference time, by metric, at the look that decided; intervals hold over all looks
            together.
        sessions: medians of the decode ratio, one for each pair of processes.
        blocks: pairs that were measured.
        lost_share: of the wall time that went to other processes, and was subtracted.
    """

    outcome: CheckOutcome
    outcomes: dict[str, CheckOutcome]
    ratios: dict[str, Estimate]
    sessions: tuple[float, ...]
    max_ratio: float
    blocks: int
    lost_share: float


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


def check_regression(
    candidate: Target, reference: Target, *, max_ratio: float, options: RunOptions, workload: Workload
) -> tuple[Verdict, Benchmark]:
    """Measure two deployments interleaved until the verdict is clear or the budget is spent.

    Args:
        candidate: what may have become slower.
        reference: what it is compared with.
        max_ratio: largest acceptable candidate time over reference time, such as 1.05.
        options: the same for both; with one thread, time that other processes took is subtracted.
        workload: see `guard_workload`.

    Raises:
        UsageError: a threshold that is not positive.
    """
    require_threshold(max_ratio)

    def clear(samples: Sequence[Sample]) -> bool:
        return judge(samples, max_ratio=max_ratio, ended=False).outcome != "inconclusive"

    benchmark = run_benchmark([reference, candidate], options=options, workload=workload, enough=clear)
    return judge(benchmark.samples, max_ratio=max_ratio), benchmark


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
        blocks=len(samples) // 2,
        lost_share=sum(sample.lost_first_s + sample.lost_decode_s for sample in samples) / wall_s,
    )


def worst(outcomes: Iterable[CheckOutcome]) -> CheckOutcome:
    """A regression outweighs what is inconclusive, and that a pass."""
    found = set(outcomes)
    return "regression" if "regression" in found else "inconclusive" if "inconclusive" in found else "pass"


def require_pass(verdict: Verdict) -> None:
    """Turn anything but a pass into an error.

    Raises:
        CheckFailed: a regression, or inconclusive.
    """
    if verdict.outcome == "pass":
        return
    found = "; ".join(
        f"{name} {show_ratio(verdict.ratios[name])}: {outcome}" for name, outcome in verdict.outcomes.items()
    )
    remedy = (
        "Measure longer (--budget), with one thread, or on a quieter machine"
        if verdict.outcome == "inconclusive"
        else None
    )
    raise CheckFailed(
        f"latency {verdict.outcome} against {verdict.max_ratio:g} after {verdict.blocks} pairs ({found})", remedy=remedy
    )


def show_ratio(ratio: Estimate) -> str:
    """The estimate and its interval, where there is one."""
    bounds = f"{ratio.low:.3f}, {ratio.high:.3f}" if ratio.samples >= MINIMUM else "too few pairs"
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
