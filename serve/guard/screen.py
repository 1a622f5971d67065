"""What `python -m serve check` and `bisect` print."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from serve.bench.benchmark import Benchmark
from serve.bench.screen import benchmark_screen
from serve.guard.bisection import Bisection
from serve.guard.regression import Verdict
from serve.guard.telling import show_ratio, tell_measuring, tell_outcomes, told_pairs

REFERENCE = " of the reference's"


def verdict_screen(verdict: Verdict, benchmark: Benchmark) -> RenderableType:
    """The tables of the benchmark, and the verdict under them."""
    lines = [
        f"{name}: {show_ratio(ratio)}{REFERENCE if ratio.samples else ''}: {verdict.outcomes[name]}"
        for name, ratio in verdict.ratios.items()
    ]
    if verdict.tokens is not None:
        lines.append(f"tokens: {verdict.tokens.told()}: {verdict.outcomes['tokens']}")
    if verdict.sessions:
        lines.append(
            f"pairs of processes: {', '.join(f'{median:.3f}' for median in verdict.sessions)} of the "
            "reference's time per token"
        )
    if verdict.lost_share > 0.01:
        lines.append(f"{verdict.lost_share:.0%} of the time went to other processes")
    lines += tell_measuring(verdict)
    lines.append(f"{verdict.outcome}: at most {verdict.max_ratio:g} was allowed, after {told_pairs(verdict.blocks)}")
    return Group(benchmark_screen(benchmark, judged=True), Text("\n".join(lines)))


def bisection_screen(found: Bisection) -> str:
    """One line for each version, and the answer; a slower version is an error, which tells it."""
    lines = [f"{found.package} {found.versions[0]}: the reference"]
    for version, record in zip(found.outcomes, found.checks, strict=True):
        figures = "; ".join(tell_outcomes(record.verdict)) if record.verdict else record.error
        lines.append(f"{found.package} {version}: {found.outcomes[version]} ({figures})")
    if found.passed:
        lines.append(f"{found.package} {found.versions[-1]} is not slower than {found.versions[0]}")
    return "\n".join(lines)
