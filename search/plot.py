"""The Pareto plot: accuracy over cost on the rows that all sub-networks were measured on, with the front and the best;
and what the best reaches on rows that did not choose it, with the spread that chance alone explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from search.cost_words import COSTS
from search.front import pareto_front
from search.journal import Record

PLOT_STEM = "pareto"
EVALUATED, FRONT, BEST = "#9aa5b1", "#0b7285", "#d9480f"


def draw_pareto(
    records: Sequence[Record], best: Record, held_back: Record | None, directory: Path, *, task: str
) -> None:
    """Write `pareto.png` and `pareto.svg`.

    Args:
        records: at least one, all on the same rows.
        best: a candidate among them.
        held_back: the same on the rows that are held back, shown with its 95 % Wilson interval.
        directory: where the files go.
        task: named on the axis.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from shearling.evaluation.confidence import wilson_interval

    front = pareto_front(records)
    # Without pyplot: no global state, no display.
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter(_costs(records), _percent(records), s=22, color=EVALUATED, label=f"evaluated ({len(records)})")
    axes.step(_costs(front), _percent(front), where="post", color=FRONT, linewidth=1.2)
    axes.scatter(_costs(front), _percent(front), s=30, color=FRONT, label=f"Pareto front ({len(front)})", zorder=3)
    same = [next(record for record in records if record.choice_idx == best.choice_idx)]
    axes.scatter(_costs(same), _percent(same), marker="*", s=170, color=BEST, label=f"best: {best.id}", zorder=4)
    if held_back is not None:
        low, high = wilson_interval(held_back.accuracy, held_back.n_eval)
        errors = [[100 * max(0.0, held_back.accuracy - low)], [100 * max(0.0, high - held_back.accuracy)]]
        label = f"best on {held_back.n_eval} held-back rows (95 % interval)"
        axes.errorbar(
            _costs(same), _percent([held_back]), yerr=errors, fmt="o", color=BEST, capsize=3, label=label, zorder=4
        )
    axes.set_xlabel(COSTS[best.axis_kind].name)
    axes.set_ylabel(f"accuracy on {task}, % of {same[0].n_eval} rows")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="best")
    # Without the salt and the date, every run would write other bytes.
    with matplotlib.rc_context({"svg.hashsalt": "shearling"}):
        figure.savefig(directory / f"{PLOT_STEM}.svg", metadata={"Date": None})
    figure.savefig(directory / f"{PLOT_STEM}.png", dpi=150)


def _costs(records: Sequence[Record]) -> list[float]:
    return [record.axis_value for record in records]


def _percent(records: Sequence[Record]) -> list[float]:
    return [100 * record.accuracy for record in records]
