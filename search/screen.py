"""What the search stage says when it is done."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from search.cost_words import COSTS
from search.front import pareto_front
from search.journal import Record
from search.stage import BEST_FILE, Searched
from shearling.command_line import Result
from shearling.elastic.subnet import Subnet
from shearling.evaluation.confidence import wilson_interval


def summarise(searched: Searched) -> Result:
    """The front and the best sub-network, as JSON and as a table."""
    front, best = pareto_front(searched.records), searched.best
    interval = wilson_interval(best.accuracy, best.n_eval)
    evaluated = sum(not record.cached for record in searched.records)
    data = {
        "search": str(searched.path),
        "best": {**_figures(best), "path": str(searched.path / BEST_FILE), "interval": list(interval)},
        "best_rule": searched.best_rule,
        "evaluations": evaluated,
        "cache_hits": len(searched.records) - evaluated,
        "pareto": [_figures(record) for record in front],
        "task": searched.task,
        "n_eval": best.n_eval,
    }
    table = Table(
        title=f"search {searched.path}: {evaluated} sub-networks on {best.n_eval} rows of {searched.task}",
        title_justify="left",
    )
    for heading in ("row", "sub-network", "accuracy", COSTS[best.cost_kind].name, ""):
        table.add_column(heading, justify="left" if heading in ("sub-network", "") else "right")
    shown = front if best in front else [*front, best]
    for record in shown:
        words = "best" if record == best else "Pareto front"
        table.add_row(
            str(record.i), record.id, f"{record.accuracy:.1%}", COSTS[record.cost_kind].show(record.cost), words
        )
    table.caption = (
        f"best: 95 % interval {interval[0]:.1%} to {interval[1]:.1%}; differences within it may be chance\n"
        f"next: python -m export --subnet {searched.path / BEST_FILE}"
    )
    table.caption_justify = "left"
    return Result(data, table)


def summarise_picked(subnet: Subnet, output: Path) -> Result:
    """What `pick` wrote, and how to export it."""
    metrics, provenance = subnet.metrics, subnet.provenance
    data = {
        "output": str(output),
        "id": subnet.id,
        "row": None if provenance is None else provenance.row,
        **({} if metrics is None else {"accuracy": metrics.accuracy, "adapter_params": metrics.adapter_params}),
    }
    return Result(data, f"{output}: {subnet.id}\nnext: python -m export --subnet {output}")


def _figures(record: Record) -> dict[str, object]:
    figures = {"row": record.i, "id": record.id, "accuracy": record.accuracy, "adapter_params": record.adapter_params}
    return {**figures, "parameters": record.parameters, "macs_m": record.macs_m, "latency_ms": record.latency_ms}
