"""Is it slower than before? A guard that says "inconclusive" rather than guess.

pass: the whole interval of the time ratio lies at or below the threshold. regression: all of it lies above. Anything between
is inconclusive, after as many blocks as the budget allows; it exits like a regression, never like a pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Group, RenderableType
from rich.text import Text

from serve.benchmark import Benchmark, block_values, run_benchmark
from serve.deployment import FormatChoice
from serve.measurement import Sample, Workload
from serve.runtime import RunOptions
from serve.screen import benchmark_screen
from serve.statistics import Estimate, paired_ratio
from shearling.errors import CheckFailed, UsageError
from shearling.strict_json import Document

GUARDED = ("ttft_s", "tpot_s")
MINIMUM_BLOCKS = 6
"""Six pairs are the fewest whose range covers the median with more than 95 %: 1 - 2 / 2**6 = 0.969."""

Outcome = Literal["pass", "regression", "inconclusive"]


class Verdict(Document):
    """What the guard concluded.

    Attributes:
        outcome: of both metrics together: the worse one.
        outcomes: by metric.
        ratios: candidate time over reference time, by metric.
        blocks: pairs that were measured.
    """

    outcome: Outcome
    outcomes: dict[str, Outcome]
    ratios: dict[str, Estimate]
    max_ratio: float
    blocks: int


def check_regression(
    candidate: Path, reference: Path, *, max_ratio: float, options: RunOptions, workload: Workload, choice: FormatChoice = "auto"
) -> tuple[Verdict, Benchmark]:
    """Measure two deployments interleaved until the verdict is clear or `workload.repeats` blocks are spent.

    Args:
        candidate: see `find_deployment`.
        reference: likewise.
        max_ratio: largest acceptable candidate time over reference time, such as 1.05.
        options: the same for both.
        workload: `repeats` is the budget in blocks, at least `MINIMUM_BLOCKS`.
        choice: the format of both.

    Raises:
        UsageError: a threshold that is not positive, or too few blocks.
    """
    if not (math.isfinite(max_ratio) and max_ratio > 0):
        raise UsageError(f"the threshold {max_ratio} is not a positive number", remedy="Give --max-ratio 1.05, for example")
    if workload.repeats < MINIMUM_BLOCKS:
        raise UsageError(f"{workload.repeats} blocks cannot decide anything at 95 %", remedy=f"Give --repeats {MINIMUM_BLOCKS} or more")

    def clear(samples: Sequence[Sample]) -> bool:
        return judge(samples, max_ratio=max_ratio).outcome != "inconclusive"

    benchmark = run_benchmark([reference, candidate], options=options, workload=workload, choice=choice, enough=clear)
    return judge(benchmark.samples, max_ratio=max_ratio), benchmark


def judge(samples: Sequence[Sample], *, max_ratio: float) -> Verdict:
    """Judge whole blocks of a reference (subject 0) and a candidate (subject 1)."""
    ratios = {name: paired_ratio(block_values(samples, 1, name), block_values(samples, 0, name)) for name in GUARDED}
    outcomes: dict[str, Outcome] = {name: _outcome(ratio, max_ratio) for name, ratio in ratios.items()}
    found = set(outcomes.values())
    overall: Outcome = "regression" if "regression" in found else "inconclusive" if "inconclusive" in found else "pass"
    return Verdict(outcome=overall, outcomes=outcomes, ratios=ratios, max_ratio=max_ratio, blocks=ratios[GUARDED[0]].samples)


def require_pass(verdict: Verdict) -> None:
    """Turn anything but a pass into an error.

    Raises:
        CheckFailed: a regression, or inconclusive.
    """
    if verdict.outcome == "pass":
        return
    found = "; ".join(f"{name} {_show(verdict.ratios[name])}: {outcome}" for name, outcome in verdict.outcomes.items())
    remedy = "Measure longer (--repeats, --new-tokens) or on a quieter machine" if verdict.outcome == "inconclusive" else None
    raise CheckFailed(f"latency {verdict.outcome} against {verdict.max_ratio:g} after {verdict.blocks} pairs ({found})", remedy=remedy)


def verdict_screen(verdict: Verdict, benchmark: Benchmark) -> RenderableType:
    """The tables of the benchmark, and the verdict under them."""
    lines = [f"{name}: {_show(verdict.ratios[name])} of the reference's time: {outcome}" for name, outcome in verdict.outcomes.items()]
    lines.append(f"{verdict.outcome}: at most {verdict.max_ratio:g} was allowed, {verdict.blocks} pairs were measured")
    return Group(benchmark_screen(benchmark), Text("\n".join(lines)))


def _outcome(ratio: Estimate, max_ratio: float) -> Outcome:
    # Fewer pairs could only give an interval that promises more than it holds.
    if ratio.samples < MINIMUM_BLOCKS:
        return "inconclusive"
    if ratio.high <= max_ratio:
        return "pass"
    return "regression" if ratio.low > max_ratio else "inconclusive"


def _show(ratio: Estimate) -> str:
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
