"""Measurements of sub-networks on ever more rows, each kept in the journal and never made twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from search.journal import Journal, Record
from search.objective import CandidateFigures, Objective
from search.row_split import RowSplit
from search.strategies.grid import Indices


class Examiner:
    """Measures candidates on the rows of a search.

    Args:
        measure: measures a candidate on some rows.
        journal: what was measured, and where it is kept.
        split: which rows choose.
    """

    def __init__(self, measure: Objective, journal: Journal, split: RowSplit) -> None:
        self._measure = measure
        self.journal = journal
        self.split = split

    def explore(self, indices: Indices) -> CandidateFigures:
        """Measure a candidate on the first part of the rows that choose."""
        return self._measure(indices, range(self.split.parts[0]))

    def extend(self, record: Record, rows: int) -> Record:
        """The same sub-network on the first `rows` rows that choose; only those that it has not seen are measured."""
        if record.n_eval >= rows:
            return record
        known = self.journal.find(record.choice_idx, "raced", rows=rows)
        if known is not None:
            return known
        added = self._measure(record.choice_idx, range(record.n_eval, rows))
        answers = (*(record.answers or ()), *(added.answers or ()))
        losses = None if record.losses is None or added.losses is None else (*record.losses, *added.losses)
        figures = {
            "part": "raced",
            "accuracy": math.fsum(answers) / rows,
            "accuracy_stderr": _standard_error(answers),
            "loss": None if losses is None else math.fsum(losses) / rows,
            "n_eval": rows,
            "eval_split_sha256": self.split.sha256(range(rows)),
            "answers": answers,
            "losses": losses,
        }
        return self._add(record, figures, seconds=added.seconds)

    def hold_against(self, record: Record) -> Record | None:
        """The same sub-network on the rows that are held back; None where there are none.

        For what has been chosen, and what it is compared with: a row that has been looked at chooses nothing any more.
        """
        positions = self.split.held_back
        known = self.journal.find(record.choice_idx, "held_back")
        if known is not None or not positions:
            return known
        added = self._measure(record.choice_idx, positions)
        figures = {
            "part": "held_back",
            "accuracy": added.accuracy,
            "accuracy_stderr": added.accuracy_stderr,
            "loss": added.loss,
            "n_eval": added.n_eval,
            "eval_split_sha256": added.eval_split_sha256,
            "answers": added.answers,
            "losses": added.losses,
        }
        return self._add(record, figures, seconds=added.seconds)

    def _add(self, record: Record, figures: dict[str, Any], *, seconds: float) -> Record:
        facts = {"i": len(self.journal.records), "seconds": seconds, "cached": False, "pareto": False}
        added = record.model_copy(update={**figures, **facts})
        self.journal.append(added)
        return added


def _standard_error(answers: Sequence[float]) -> float:
    mean = math.fsum(answers) / len(answers)
    squares = math.fsum((answer - mean) ** 2 for answer in answers)
    return math.sqrt(squares / max(1, len(answers) - 1) / len(answers))
