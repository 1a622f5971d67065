"""A verdict in words: for the screen, for an error, for the reports."""

from __future__ import annotations

import math

from serve.bench.huge_pages import doubt_of_huge_pages
from serve.bench.statistics import Estimate
from serve.guard.process_pairs import FIRST_PAIRS
from serve.guard.regression import LOAD, MEMORY, ROUND_S, Verdict
from serve.guard.sequential import MINIMUM
from shearling.errors import CheckFailed

CHANGED = "Rounding alone can do that, least with --precision fp32; --allow-other-tokens judges the times alone"


def require_pass(verdict: Verdict) -> None:
    """Turn anything but a pass into an error.

    Raises:
        CheckFailed: a regression, other tokens, or inconclusive.
    """
    if verdict.outcome == "pass":
        return
    figures, result = "; ".join(tell_outcomes(verdict)), verdict.model_dump(mode="json")
    if verdict.outcome == "changed":
        raise CheckFailed(f"the output changed ({figures})", remedy=CHANGED, result=result)
    remedy = how_to_settle(verdict) if verdict.outcome == "inconclusive" else None
    raise CheckFailed(
        f"latency {verdict.outcome} against {verdict.max_ratio:g} after {told_pairs(verdict.blocks)} ({figures})",
        remedy=remedy,
        result=result,
    )


def how_to_settle(verdict: Verdict) -> str:
    """How much more time an inconclusive check would probably need."""
    budget_s = verdict.settling_budget_s
    open_names = {name for name, outcome in verdict.outcomes.items() if outcome == "inconclusive"}
    if open_names <= {LOAD, MEMORY}:
        return _how_to_settle_costs(verdict, open_names)
    if budget_s is not None and verdict.past is None and len(verdict.sessions) < FIRST_PAIRS:
        return f"Three pairs of processes are the least, which takes {budget_s:g} s here: --budget {budget_s:g} or more"
    if budget_s is not None:
        more_s = max(ROUND_S, budget_s - verdict.measured_s)
        return f"About {more_s:.0f} s more would probably settle it: run it anew with --budget {budget_s:g}"
    if verdict.past is not None:
        return (
            "The ratio is so near the limit, or the measurements of the history so far from each other, that no longer "
            "one would settle it: give another --max-ratio, record more days, or measure side by side with --against"
        )
    if len(verdict.sessions) >= FIRST_PAIRS:
        return (
            "The ratio is so near the limit, or the machine so noisy, that no reasonable time would settle it: give "
            "another --max-ratio, one thread, or a quieter machine"
        )
    return "Measure longer (--budget), with one thread, or on a quieter machine"


def _how_to_settle_costs(verdict: Verdict, open_names: set[str]) -> str:
    if MEMORY in open_names:
        return (
            "Processes of one side differ in their memory by more than the limit leaves, which no time settles: give "
            "another --max-memory-ratio"
        )
    rounds, budget_s = verdict.ratios[LOAD].samples, verdict.settling_budget_s
    if budget_s is None:
        return f"After {rounds} rounds of loading it is too near the limit: give another --max-load-ratio, or --budget"
    return f"{rounds} rounds of loading decide nothing, {MINIMUM} may: --budget {budget_s:g} or more"


def tell_outcomes(verdict: Verdict) -> list[str]:
    """Each metric with its ratio and its outcome; what changed is told last."""
    lines = [
        f"{name} {show_ratio(ratio)}{_limit(verdict, name)}: {verdict.outcomes[name]}"
        for name, ratio in verdict.ratios.items()
    ]
    if verdict.tokens is not None:
        lines.append(f"tokens: {verdict.tokens.told()}")
    return [*lines, *verdict.changes]


def tell_measuring(verdict: Verdict) -> list[str]:
    """What happened while it was measured, and what an open verdict needs."""
    lines = []
    if verdict.set_aside:
        lines.append(
            f"{verdict.set_aside} of {told_pairs(verdict.blocks)} were left out: the hypervisor or other "
            "processes took the CPU"
        )
    if verdict.instructions is not None:
        lines.append(f"instructions: {verdict.instructions:.3f} of the reference's")
    elif verdict.past is None:
        lines.append("instructions: not compared, since no counter of the processor is open to both processes")
    huge_pages = doubt_of_huge_pages(verdict.huge_shares)
    if huge_pages is not None:
        lines.append(huge_pages)
    lines += verdict.changes
    if verdict.outcome == "inconclusive":
        lines.append(how_to_settle(verdict))
    return lines


def told_pairs(count: int) -> str:
    """How many pairs of samples, of which a pair of processes has some."""
    return f"{count} pair{'s' if count != 1 else ''} of samples"


def show_ratio(ratio: Estimate) -> str:
    """The estimate and its interval, as far as there are any."""
    if not ratio.samples:
        return "not measured long enough"
    bounds = f"{ratio.low:.3f}, {ratio.high:.3f}" if math.isfinite(ratio.low) and ratio.low > 0 else "too few pairs"
    return f"{ratio.median:.3f} [{bounds}]"


def _limit(verdict: Verdict, name: str) -> str:
    limit = verdict.limits.get(name, verdict.max_ratio)
    return "" if limit == verdict.max_ratio else f" against {limit:g}"
