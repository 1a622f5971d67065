"""From the records of a search to its Pareto front and its best sub-network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from search.journal import Record
from shearling.errors import NoCandidate

BEST_RULE = "max accuracy, ties -> fewer adapter params -> lexicographic index"
PARETO_SCHEMA = "shearling.pareto/1"


def dominates(left: Record, right: Record) -> bool:
    """Whether `left` is at least as good in accuracy and adapter parameters, and better in one."""
    no_worse = left.accuracy >= right.accuracy and left.adapter_params <= right.adapter_params
    return no_worse and (left.accuracy > right.accuracy or left.adapter_params < right.adapter_params)


def pareto_front(records: Sequence[Record]) -> list[Record]:
    """Records that none dominates, by adapter parameters; a candidate counts once, equal outcomes all count."""
    distinct = list({record.choice_idx: record for record in reversed(records)}.values())
    front = [record for record in distinct if not any(dominates(other, record) for other in distinct)]
    return sorted(front, key=lambda record: (record.adapter_params, record.choice_idx))


def best_record(records: Sequence[Record], *, min_accuracy: float | None = None, max_params: int | None = None) -> Record:
    """The best record by `BEST_RULE` among those that meet the constraints.

    Raises:
        NoCandidate: none does; says how near the search came.
    """
    meeting = [
        record
        for record in records
        if (min_accuracy is None or record.accuracy >= min_accuracy) and (max_params is None or record.adapter_params <= max_params)
    ]
    if not meeting:
        wanted = {"accuracy >=": min_accuracy, "adapter parameters <=": max_params}
        limits = " and ".join(f"{words} {limit}" for words, limit in wanted.items() if limit is not None)
        accuracies, params = [record.accuracy for record in records], [record.adapter_params for record in records]
        reached = f"the most accurate reaches {max(accuracies):.4f}, the smallest has {min(params)}" if records else "nothing was evaluated"
        raise NoCandidate(
            f"none of {len(records)} evaluations has {limits or 'been made'}; {reached}",
            remedy="Loosen the constraint or search longer; what was evaluated is kept",
        )
    return min(meeting, key=_rank)


def _rank(record: Record) -> tuple[float, int, tuple[int, ...], int]:
    return (-record.accuracy, record.adapter_params, record.choice_idx, record.i)


def pareto_document(records: Sequence[Record]) -> dict[str, Any]:
    """The content of `pareto.json`."""
    points = [
        {
            "row": record.i,
            "id": record.id,
            "choice_idx": list(record.choice_idx),
            "accuracy": record.accuracy,
            "loss": record.loss,
            "adapter_params": record.adapter_params,
            "nonzero_params": record.nonzero_params,
        }
        for record in pareto_front(records)
    ]
    return {"schema": PARETO_SCHEMA, "objectives": {"accuracy": "max", "adapter_params": "min"}, "points": points}


def progression_rows(records: Sequence[Record]) -> list[list[Any]]:
    """Header and rows of `progression.csv`; `is_best` marks each record that was the best when it was made."""
    rows: list[list[Any]] = [["i", "id", "generation", "macs_m", "accuracy", "loss", "adapter_params", "seconds", "is_best"]]
    best: Record | None = None
    for record in records:
        is_best = best is None or _rank(record) < _rank(best)
        best = record if is_best else best
        macs_m, loss = ("" if value is None else value for value in (record.macs_m, record.loss))
        rows.append([record.i, record.id, record.generation, macs_m, record.accuracy, loss, record.adapter_params, record.seconds, int(is_best)])
    return rows
