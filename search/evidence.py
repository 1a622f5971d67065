"""What the journal says of one sub-network: on how many rows it was measured, how it did against the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.front import compare
from search.journal import Record
from search.strategies.grid import Indices
from shearling.elastic.subnet import Comparison


def find_longest(indices: Indices, records: Sequence[Record]) -> Record | None:
    """The record of a candidate on the most rows that choose."""
    found = [record for record in records if record.choice_idx == indices and record.part != "held_back"]
    return max(found, key=lambda record: record.n_eval, default=None)


def find_held_back(record: Record, records: Sequence[Record]) -> Record | None:
    """The record of the same candidate on the rows that are held back."""
    same = (other for other in records if other.choice_idx == record.choice_idx and other.part == "held_back")
    return next(same, None)


def compare_with_largest(record: Record, records: Sequence[Record]) -> Comparison | None:
    """A record less the largest sub-network, on the rows that both were measured on.

    Returns:
        None for the largest itself, where it was not measured, and in journals without answers.
    """
    largest: Indices = (0,) * len(record.choice_idx)
    if record.choice_idx == largest:
        return None
    other = find_longest(largest, records)
    if record.part == "held_back":
        other = None if other is None else find_held_back(other, records)
    if other is None or not record.answers or not other.answers:
        return None
    found = compare(record, other)
    return Comparison(
        n=found.n,
        largest_accuracy=math.fsum(other.answers[: found.n]) / found.n,
        difference=found.mean,
        interval=found.interval,
        p_value=found.p_value,
    )
