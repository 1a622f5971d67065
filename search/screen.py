"""What the search stage says when it is done."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from search.cost_words import COSTS
from search.evidence import compare_with_largest, find_held_back, find_longest
from search.front import pareto_front
from search.journal import Record
from search.stage import BEST_FILE, Searched
from shearling.command_line import Result, next_step
from shearling.elastic.subnet import Comparison, Subnet
from shearling.evaluation.confidence import wilson_interval

HEADINGS = ("", "choosing rows", "held-back rows", "less the largest")


def summarise(searched: Searched) -> Result:
    """The largest, the middle and the best sub-network and the front, as JSON; the first three as a table."""
    best, explored = searched.best, searched.explored
    compared = _compared(searched)
    evaluated = sum(not record.cached for record in explored)
    data = {
        "search": str(searched.path),
        "best": {**_figures(best), **_judged(best, searched), "path": str(searched.path / BEST_FILE)},
        "best_rule": searched.best_rule,
        "compared": {role: {**_figures(record), **_judged(record, searched)} for role, record in compared.items()},
        "evaluations": evaluated,
        "cache_hits": len(explored) - evaluated,
        "pareto": [_figures(record) for record in pareto_front(explored)],
        "frozen": None if searched.frozen is None else searched.frozen.document(),
        "task": searched.task,
        "n_eval": best.n_eval,
    }
    table = Table(
        title=escape(
            f"search {searched.path}: {evaluated} sub-networks raced on {best.n_eval} rows of {searched.task}"
        ),
        title_justify="left",
    )
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading else "left")
    for role, record in compared.items():
        table.add_row(role, *_cells(record, searched))
    if searched.frozen is not None:
        held_back = _held_back(searched.frozen.accuracy, searched.frozen.interval)
        table.add_row("no adapter", "-", held_back, "-")
    table.caption = escape(_caption(searched))
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
    return Result(data, f"{output}: {subnet.id}\n{next_step('-m', 'export', '--subnet', str(output))}")


def _compared(searched: Searched) -> dict[str, Record]:
    """By role; what has several roles stands on one line."""
    largest = tuple(0 for _ in searched.best.choice_idx)
    roles: dict[tuple[int, ...], list[str]] = {}
    for role, indices in (("largest", largest), ("middle", searched.middle), ("best", searched.best.choice_idx)):
        roles.setdefault(indices, []).append(role)
    found = {", ".join(names): find_longest(indices, searched.records) for indices, names in roles.items()}
    return {names: record for names, record in found.items() if record is not None}


def _cells(record: Record, searched: Searched) -> tuple[str, str, str]:
    held_back, comparison = find_held_back(record, searched.records), compare_with_largest(record, searched.records)
    chosen = f"{record.accuracy:.1%} of {record.n_eval}"
    if held_back is None:
        return chosen, "-", _difference(comparison)
    interval = wilson_interval(held_back.accuracy, held_back.n_eval)
    return chosen, _held_back(held_back.accuracy, interval), _difference(comparison)


def _held_back(accuracy: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{accuracy:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def _difference(comparison: Comparison | None) -> str:
    return "-" if comparison is None else _points(comparison.difference, comparison.interval)


def _points(difference: float, interval: tuple[float, float]) -> str:
    low, high = (f"{100 * bound:+.1f}" for bound in interval)
    return f"{100 * difference:+.1f} ({low} to {high})"


def _caption(searched: Searched) -> str:
    best, cost = searched.best, COSTS[searched.best.cost_kind]
    held_back = find_held_back(best, searched.records)
    prediction = (
        "too few validation rows to hold any back: nothing predicts the accuracy"
        if held_back is None
        else f"expect the accuracy on held-back rows: these {held_back.n_eval} chose nothing (95 % intervals)"
    )
    # What an earlier search has led to is replaced.
    again = ["--force"] if (searched.path.parent / "export").exists() else []
    saved = "" if cost.field is None else f"; {cost.name}: {best.cost / cost.scale:.2f}"
    return (
        f"best: {best.id}, row {best.i}{saved}\n"
        + "".join(f"{line}\n" for line in searched.chosen)
        + f"rule: {searched.best_rule}\n"
        f"{prediction}\n"
        + _beside_frozen(searched)
        + next_step("-m", "export", "--subnet", str(searched.path / BEST_FILE), *searched.exported_as, *again)
    )


def _beside_frozen(searched: Searched) -> str:
    frozen = searched.frozen
    if frozen is None:
        return ""
    gain = f"the adapter brings {_points(frozen.best_gains, frozen.gain_interval)} points there\n"
    if frozen.is_beaten:
        return gain
    alone = shlex.join(["python", "-m", "export", "--base", str(frozen.path), *searched.exported_as])
    judgement = "it does harm" if frozen.beats else "chance may explain that"
    return f"{gain}{judgement}; without it:\n{alone}\n"


def _judged(record: Record, searched: Searched) -> dict[str, Any]:
    held_back, comparison = find_held_back(record, searched.records), compare_with_largest(record, searched.records)
    judged: dict[str, Any] = {"n_eval": record.n_eval, "held_back": None, "versus_largest": None}
    if held_back is not None:
        interval = list(wilson_interval(held_back.accuracy, held_back.n_eval))
        judged["held_back"] = {"accuracy": held_back.accuracy, "n": held_back.n_eval, "interval": interval}
    if comparison is not None:
        judged["versus_largest"] = comparison.model_dump(mode="json")
    return judged


def _figures(record: Record) -> dict[str, object]:
    figures = {"row": record.i, "id": record.id, "accuracy": record.accuracy, "adapter_params": record.adapter_params}
    counted = {"parameters": record.parameters, "macs_m": record.macs_m, "model_bytes": record.model_bytes}
    return {**figures, **counted, "latency_ms": record.latency_ms}
