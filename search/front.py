"""From the records of a search to its Pareto front and its best sub-network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from search.journal import Record
from search.strategies.strategy import Cost
from shearling.errors import NoCandidate, UsageError
from shearling.registry.search_algorithms import SEARCH_ALGORITHMS

PARETO_SCHEMA = "shearling.pareto/1"


@dataclass(frozen=True)
class BestRule:
    """Which record is the best.

    Attributes:
        min_accuracy: it has at least this.
        max_params: it has at most so many adapter parameters.
        accuracy_delta: it is the cheapest within this of the reference; None: it is the most accurate.
        reference_accuracy: None takes that of the largest sub-network.
        max_cost: it costs at most this, in the unit of the journal.

    Raises:
        UsageError: there is a reference without a delta.
    """

    min_accuracy: float | None = None
    max_params: int | None = None
    accuracy_delta: float | None = None
    reference_accuracy: float | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        if self.reference_accuracy is not None and self.accuracy_delta is None:
            raise UsageError(
                "a reference needs a delta", where="--reference-accuracy", remedy="Give --accuracy-delta too"
            )

    @property
    def needs_largest(self) -> bool:
        """Whether the largest sub-network has to be evaluated, for its accuracy."""
        return self.accuracy_delta is not None and self.reference_accuracy is None

    def words(self, cost: Cost) -> str:
        """The rule as stored beside what it chose."""
        name = cost.replace("_", " ")
        limit = "" if self.max_cost is None else f"{name} <= {self.max_cost:g}"
        if self.accuracy_delta is None:
            return f"max accuracy{limit and ' with '}{limit}, ties -> fewer {name} -> lexicographic index"
        reference = (
            "that of the largest sub-network" if self.reference_accuracy is None else f"{self.reference_accuracy:g}"
        )
        least = f"accuracy >= {reference} - {self.accuracy_delta:g}{limit and ' and '}{limit}"
        return f"least {name} with {least}, ties -> max accuracy -> lexicographic index"

    def least_accuracy(self, records: Sequence[Record]) -> float:
        """The accuracy that a record needs.

        Raises:
            NoCandidate: the reference is the largest sub-network, which was not evaluated.
        """
        floor = self.min_accuracy or 0.0
        if self.accuracy_delta is None:
            return floor
        reference = self.reference_accuracy
        if reference is None:
            largest = [record.accuracy for record in records if not any(record.choice_idx)]
            if not largest:
                raise NoCandidate(
                    "the reference is the largest sub-network, which was not evaluated", remedy=reference_remedy()
                )
            reference = largest[0]
        # A difference of decimal fractions is not exact.
        return max(floor, reference - self.accuracy_delta - 1e-12)

    def affords(self, record: Record) -> bool:
        """Whether a record keeps the limits on parameters and cost."""
        cheap = self.max_cost is None or record.cost <= self.max_cost
        return cheap and (self.max_params is None or record.adapter_params <= self.max_params)

    def rank(self, record: Record) -> tuple[float, float, tuple[int, ...], int]:
        """Smaller is better."""
        first, second = (
            (-record.accuracy, record.cost) if self.accuracy_delta is None else (record.cost, -record.accuracy)
        )
        return first, second, record.choice_idx, record.i


def reference_remedy() -> str:
    """How to have a reference accuracy."""
    trying = [algorithm.name for algorithm in SEARCH_ALGORITHMS if algorithm.tries_largest]
    return f"Give --reference-accuracy, or search with {' or '.join(trying)}"


def dominates(left: Record, right: Record) -> bool:
    """Whether `left` is at least as good in accuracy and cost, and better in one."""
    no_worse = left.accuracy >= right.accuracy and left.cost <= right.cost
    return no_worse and (left.accuracy > right.accuracy or left.cost < right.cost)


def pareto_front(records: Sequence[Record]) -> list[Record]:
    """Records that none dominates, by cost; a candidate counts once, equal outcomes all count."""
    distinct = list({record.choice_idx: record for record in reversed(records)}.values())
    front = [record for record in distinct if not any(dominates(other, record) for other in distinct)]
    return sorted(front, key=lambda record: (record.cost, record.choice_idx))


def best_record(records: Sequence[Record], rule: BestRule | None = None) -> Record:
    """The best record among those that meet the constraints.

    Raises:
        NoCandidate: none does; says how near the search came.
    """
    rule = rule or BestRule()
    least = rule.least_accuracy(records)
    meeting = [record for record in records if record.accuracy >= least and rule.affords(record)]
    if not meeting:
        wanted = {
            "accuracy >=": round(least, 6) or None,
            "adapter parameters <=": rule.max_params,
            "cost <=": rule.max_cost,
        }
        limits = " and ".join(f"{words} {limit}" for words, limit in wanted.items() if limit is not None)
        accuracies, params = [record.accuracy for record in records], [record.adapter_params for record in records]
        reached = (
            f"the most accurate reaches {max(accuracies):.4f}, the smallest has {min(params)}"
            if records
            else "nothing was evaluated"
        )
        raise NoCandidate(
            f"none of {len(records)} evaluations has {limits or 'been made'}; {reached}",
            remedy="Loosen the constraint or search longer; what was evaluated is kept",
        )
    return min(meeting, key=rule.rank)


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
            "parameters": record.parameters,
            "macs_m": record.macs_m,
            "latency_ms": record.latency_ms,
        }
        for record in pareto_front(records)
    ]
    cost = records[0].cost_kind if records else "adapter_params"
    return {"schema": PARETO_SCHEMA, "objectives": {"accuracy": "max", cost: "min"}, "points": points}


def progression_rows(records: Sequence[Record]) -> list[list[Any]]:
    """Header and rows of `progression.csv`; `is_best` marks each record that was the most accurate when it was made."""
    rows: list[list[Any]] = [
        ["i", "id", "generation", "macs_m", "accuracy", "loss", "adapter_params", "seconds", "is_best"]
    ]
    best, rule = None, BestRule()
    for record in records:
        is_best = best is None or rule.rank(record) < rule.rank(best)
        best = record if is_best else best
        macs_m, loss = ("" if value is None else value for value in (record.macs_m, record.loss))
        rows.append(
            [
                record.i,
                record.id,
                record.generation,
                macs_m,
                record.accuracy,
                loss,
                record.adapter_params,
                record.seconds,
                int(is_best),
            ]
        )
    return rows
