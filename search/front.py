"""From the records of a search to its Pareto front and its best sub-network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from search.strategies.strategy import Cost
from shearling.errors import NoCandidate, UsageError
from shearling.evaluation.confidence import wilson_interval
from shearling.evaluation.paired_difference import PairedDifference, holm, paired_difference

if TYPE_CHECKING:
    from search.journal import Record

PARETO_SCHEMA = "shearling.pareto/1"

LEVEL = 0.05
"""How often a search may prefer a sub-network to the largest by chance alone, at most."""

Preference = Literal["accuracy", "cheaper"]
"""What to take of sub-networks that the rows do not tell from the largest: the largest, or the cheapest of them."""


@dataclass(frozen=True)
class BestRule:
    """Which record is the best.

    By default it is the largest sub-network, unless another one is more accurate on the same rows by more than chance
    explains. Where a limit keeps the largest out, it is the most accurate within the limit.

    Attributes:
        min_accuracy: it has at least this.
        max_params: it has at most so many adapter parameters.
        prefer: "cheaper" takes the cheapest that the rows do not tell from the largest.
        accuracy_delta: it is the cheapest within this of the reference, on the same rows.
        reference_accuracy: None takes that of the largest sub-network.
        max_cost: it costs at most this, in the unit of the journal.
        max_bytes: its exported weights take at most so much.
        max_latency_ms: its forward is predicted to take at most so long.

    Raises:
        UsageError: there is a reference without a delta.
    """

    min_accuracy: float | None = None
    max_params: int | None = None
    prefer: Preference = "accuracy"
    accuracy_delta: float | None = None
    reference_accuracy: float | None = None
    max_cost: float | None = None
    max_bytes: int | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        if self.reference_accuracy is not None and self.accuracy_delta is None:
            raise UsageError(
                "a reference needs a delta", where="--reference-accuracy", remedy="Give --accuracy-delta too"
            )

    @property
    def prefers_cheaper(self) -> bool:
        """Whether the best is the cheapest of those that are accurate enough."""
        return self.prefer == "cheaper" or self.accuracy_delta is not None

    @property
    def needs_largest(self) -> bool:
        """Whether the largest sub-network has to be evaluated, for its accuracy."""
        return self.prefers_cheaper and self.reference_accuracy is None

    def words(self, cost: Cost, *, compared: bool = True) -> str:
        """The rule as stored beside what it chose.

        Args:
            cost: what the search saved.
            compared: whether the largest sub-network was among those that keep every limit.
        """
        name = cost.replace("_", " ")
        fewer = "" if cost == "none" else f"fewer {name} -> "
        limits = (
            (f"{name} <=", self.max_cost),
            ("adapter parameters <=", self.max_params),
            ("bytes <=", self.max_bytes),
            ("predicted ms <=", self.max_latency_ms),
            ("accuracy >=", self.min_accuracy),
        )
        limit = " and ".join(f"{condition} {value:.10g}" for condition, value in limits if value is not None)
        if not self.prefers_cheaper and not compared:
            return f"max accuracy{limit and ' with '}{limit}, ties -> less loss -> {fewer}lexicographic index"
        if not self.prefers_cheaper:
            return (
                f"the largest sub-network, unless another{limit and ' with '}{limit} is more accurate on the same rows "
                "by more than chance "
                f"explains (exact permutation test with Holm's correction, {100 * LEVEL:g} %); of several max "
                f"accuracy, ties -> less loss -> {fewer}lexicographic index"
            )
        ties = "ties -> max accuracy -> less loss -> lexicographic index"
        if self.accuracy_delta is None:
            told = "not told to be less accurate than the largest on the same rows (95 % interval of the difference)"
            return f"least {name} of those {told}{limit and ' and with '}{limit}, {ties}"
        reference = (
            "that of the largest sub-network" if self.reference_accuracy is None else f"{self.reference_accuracy:g}"
        )
        same = " on the same rows" if self.reference_accuracy is None else ""
        least = f"accuracy >= {reference} - {self.accuracy_delta:g}{same}{limit and ' and '}{limit}"
        return f"least {name} with {least}, {ties}"

    def affords(self, record: Record) -> bool:
        """Whether a record keeps the limits on parameters and cost."""
        limited = (
            (record.cost, self.max_cost),
            (record.adapter_params, self.max_params),
            (record.model_bytes, self.max_bytes),
            (record.latency_ms, self.max_latency_ms),
        )
        # Sums of times are rounded in the order of their terms.
        return all(most is None or (value is not None and value <= most * (1 + 1e-9)) for value, most in limited)

    def accepts(self, record: Record, largest: Record | None) -> bool:
        """Whether a record keeps every limit, those on its accuracy included.

        Args:
            record: on the rows that choose.
            largest: the largest sub-network on the same rows; None where it was not evaluated.
        """
        if not self.affords(record) or record.accuracy < self.floor:
            return False
        if largest is None or not self.needs_largest:
            return True
        difference = compare(record, largest)
        return (
            difference.interval[1] >= 0
            if self.accuracy_delta is None
            else difference.mean >= -self.accuracy_delta - 1e-12
        )

    def rules_out(self, record: Record, largest: Record | None) -> bool:
        """Whether so many rows suffice to say that a record will not be accurate enough on more of them.

        Args:
            record: on some of the rows that choose.
            largest: the largest sub-network on as many of them or more; None where it was not evaluated.
        """
        if wilson_interval(record.accuracy, record.n_eval)[1] < self.floor:
            return True
        if largest is None or not self.needs_largest:
            return False
        return compare(record, largest).interval[1] < -(self.accuracy_delta or 0.0)

    @property
    def floor(self) -> float:
        """The accuracy that a record needs, whatever the largest sub-network has."""
        # A difference of decimal fractions is not exact.
        relative = (self.reference_accuracy or 0.0) - (self.accuracy_delta or 0.0) - 1e-12
        return max(self.min_accuracy or 0.0, relative)

    def rank(self, record: Record) -> tuple[float, float, float, tuple[int, ...], int]:
        """Smaller is better, among records on the same rows. Of equal accuracies the likelier answers win: every row
        counts there, not only those near the boundary.
        """
        loss = record.loss or 0.0
        accurate = (-record.accuracy, loss, record.cost)
        first, second, third = (record.cost, *accurate[:2]) if self.prefers_cheaper else accurate
        return first, second, third, record.choice_idx, record.i


def compare(record: Record, other: Record) -> PairedDifference:
    """A record less another one, row by row: on the rows that choose and that both were measured on, or on those that
    are held back.
    """
    return paired_difference(record.answers or (), other.answers or ())


def distinct(records: Sequence[Record]) -> list[Record]:
    """The first record of each candidate."""
    return list({record.choice_idx: record for record in reversed(records)}.values())[::-1]


def find_largest(records: Sequence[Record]) -> Record | None:
    """The record of the largest sub-network, if there is one."""
    return next((record for record in records if not any(record.choice_idx)), None)


def dominates(left: Record, right: Record) -> bool:
    """Whether `left` is at least as good in accuracy and cost, and better in one."""
    no_worse = left.accuracy >= right.accuracy and left.cost <= right.cost
    return no_worse and (left.accuracy > right.accuracy or left.cost < right.cost)


def pareto_front(records: Sequence[Record]) -> list[Record]:
    """Records that none dominates, by cost, of records on the same rows; a candidate counts once, equal outcomes all
    count.
    """
    candidates = distinct(records)
    front = [record for record in candidates if not any(dominates(other, record) for other in candidates)]
    return sorted(front, key=lambda record: (record.cost, record.choice_idx))


def best_record(
    records: Sequence[Record], rule: BestRule | None = None, *, explored: Sequence[Record] | None = None
) -> Record:
    """The best record among those that meet the constraints.

    Args:
        records: on the same rows.
        rule: which is the best.
        explored: those of which these records are what is left after a race. Each of them might have come out ahead of
            the largest by luck, so that the test is corrected for all; None: there were no others.

    Raises:
        NoCandidate: none does; says how near the search came.
    """
    rule = rule or BestRule()
    largest = find_largest(records)
    meeting = [record for record in records if rule.accepts(record, largest)]
    if not meeting:
        raise _no_candidate(records, rule, largest, explored=explored or records)
    if rule.prefers_cheaper or largest is None or largest not in meeting:
        return min(meeting, key=rule.rank)
    return min(_more_accurate(meeting, largest, tried=len(distinct(explored or records))) or [largest], key=rule.rank)


def _more_accurate(records: Sequence[Record], largest: Record, *, tried: int) -> list[Record]:
    """Those that are more accurate than the largest sub-network by more than chance explains."""
    others = [record for record in distinct(records) if any(record.choice_idx)]
    chances = [compare(record, largest).p_value for record in others]
    # What left the race could not have come out ahead: it counts in the correction, and has no chance of its own.
    absent = [1.0] * (tried - 1 - len(others))
    return [record for record, chance in zip(others, holm([*chances, *absent]), strict=False) if chance <= LEVEL]


def _no_candidate(
    records: Sequence[Record], rule: BestRule, largest: Record | None, *, explored: Sequence[Record]
) -> NoCandidate:
    least = rule.floor
    if largest is not None and rule.needs_largest:
        least = max(least, largest.accuracy - (rule.accuracy_delta or 0.0))
    wanted = {
        "accuracy >=": round(least, 6) or None,
        "adapter parameters <=": rule.max_params,
        "cost <=": rule.max_cost,
        "bytes <=": rule.max_bytes,
        "predicted ms <=": rule.max_latency_ms,
    }
    limits = " and ".join(f"{words} {limit}" for words, limit in wanted.items() if limit is not None)
    reached = "nothing was evaluated"
    if records and explored:
        most, rows = max((record.accuracy, record.n_eval) for record in records)
        smallest = min(record.adapter_params for record in explored)
        reached = f"the most accurate on all {rows} rows reaches {most:.4f}, the smallest has {smallest}"
    elif explored:
        reached = f"the smallest has {min(record.adapter_params for record in explored)}"
    return NoCandidate(
        f"none of {len(distinct(explored))} sub-networks has {limits or 'been made'}; {reached}",
        remedy="Loosen the constraint or search longer; what was evaluated is kept",
    )


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
            "model_bytes": record.model_bytes,
            "latency_ms": record.latency_ms,
        }
        for record in pareto_front(records)
    ]
    cost = records[0].cost_kind if records else "adapter_params"
    saved = {} if cost == "none" else {cost: "min"}
    return {"schema": PARETO_SCHEMA, "objectives": {"accuracy": "max", **saved}, "points": points}


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
