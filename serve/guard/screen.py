"""What `python -m serve check` prints."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from serve.bench.benchmark import Benchmark
from serve.bench.screen import benchmark_screen
from serve.guard.regression import Verdict, show_ratio


def verdict_screen(verdict: Verdict, benchmark: Benchmark) -> RenderableType:
    """The tables of the benchmark, and the verdict under them."""
    lines = [
        f"{name}: {show_ratio(verdict.ratios[name])} of the reference's time: {outcome}"
        for name, outcome in verdict.outcomes.items()
    ]
    if verdict.sessions:
        lines.append(
            f"pairs of processes: {', '.join(f'{median:.3f}' for median in verdict.sessions)} of the "
            "reference's time per token"
        )
    if verdict.lost_share > 0.01:
        lines.append(f"{verdict.lost_share:.0%} of the time went to other processes, and was subtracted")
    lines.append(f"{verdict.outcome}: at most {verdict.max_ratio:g} was allowed, {verdict.blocks} pairs were measured")
    return Group(benchmark_screen(benchmark), Text("\n".join(lines)))
