"""The table of the demo of elastic widths, as Markdown."""

from __future__ import annotations

from shearling.demo.lonas.layout import SUBJECTS
from shearling.demo.lonas.outcome import LonasOutcome


def render_report(outcome: LonasOutcome) -> str:
    """The report."""
    headings = table_headings(outcome)
    rows = [headings, ("---",) * len(headings), *table_cells(outcome)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    note = (
        f"Seed {outcome.seed}; {outcome.n} unseen rows; times of {outcome.timed}, on OpenVINO, batch 1, all models in "
        "turn."
    )
    return f"# {SUBJECTS[outcome.kind].title}\n\n{table}\n\n{note}\n"


def table_headings(outcome: LonasOutcome) -> tuple[str, ...]:
    """Of the columns; the first names the model."""
    return (
        "model",
        "accuracy, % (95 %)",
        "parameters, M",
        "MACs at 256 tokens, G",
        f"{SUBJECTS[outcome.kind].timed}, ms",
        "speed-up (95 %)",
    )


def table_cells(outcome: LonasOutcome) -> list[tuple[str, ...]]:
    """One row for each model."""
    reference = outcome.models[0]
    return [
        (
            model.label,
            f"{100 * model.accuracy:.1f} ({100 * model.interval[0]:.1f}-{100 * model.interval[1]:.1f})",
            f"{model.parameters / 1e6:.2f}",
            f"{model.macs_m / 1e3:.3f} ({model.macs_m / reference.macs_m - 1:+.0%})",
            f"{model.ms:.2f}",
            f"{model.speedup[0]:.2f} ({model.speedup[1]:.2f}-{model.speedup[2]:.2f})",
        )
        for model in outcome.models
    ]
