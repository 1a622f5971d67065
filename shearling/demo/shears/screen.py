"""The closing screen: one table of at most 100 columns, what it means, and where to read more."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shearling.demo.shears.layout import ShearsLayout
from shearling.demo.shears.outcome import LABELS, ShearsOutcome
from shearling.demo.shears.rows import Speed


def _speed(speed: Speed | None) -> tuple[str, ...]:
    if speed is None:
        return ("-",) * 4
    return (
        f"{speed.weight_bytes / 1e6:.0f}",
        f"{1e3 * speed.ttft_s.median:.0f}",
        f"{1e3 * speed.tpot_s.median:.1f}",
        f"{speed.tokens_per_s.median:.0f}",
    )


def closing_screen(outcome: ShearsOutcome, layout: ShearsLayout) -> RenderableType:
    """What a newcomer sees last."""
    table = Table(
        title=f"{outcome.model_id}, {outcome.task}: {outcome.n} unseen rows",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0, 0, 1),
    )
    # Names of peers may be long; what is ours is not.
    table.add_column("model", overflow="fold", min_width=max(map(len, LABELS.values())))
    for heading in ("accuracy\n95 %", "bits per\nbyte", "zeros", "size\nMB", "first\nms", "each\nms", "tokens\n/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in outcome.rows:
        low, high = row.interval
        table.add_row(
            row.label,
            f"{100 * row.accuracy:.1f} ({100 * low:.0f}-{100 * high:.0f})",
            "-" if row.bits_per_byte is None else f"{row.bits_per_byte:.2f}",
            "-" if row.sparsity is None else f"{row.sparsity:.0%}",
            *_speed(row.speed),
            style="bold" if row.is_ours else None,
        )
    findings = Table.grid(padding=(0, 1))
    for finding in outcome.findings:
        findings.add_row("-", finding)
    if outcome.scale == "smoke":
        findings.add_row("-", "This was a smoke run: too few steps and rows for the numbers to mean anything.")
    lines = (
        "zeros: in the linear layers. size: of the weights. first, each: time to a token.",
        "sparse int8: zeros packed away. What has no time is float32, and was not timed.",
        f"{outcome.time_in_words} on {outcome.machine}.",
        f"Try it:  python -m serve generate {layout.run.export} \\",
        "             --no-chat --max-new-tokens 1 \\",
        "             --prompt $'Headline: Area man wins award\\nSarcastic:'",
        f"Report:  {layout.report}",
    )
    return Group(table, findings, Text("\n" + "\n".join(lines)))
