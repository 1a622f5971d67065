"""Measurements of sub-networks on ever more rows, each kept in the journal and never made twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from search.journal import Journal, Record
from search.objective import CandidateFigures, Objective
from search.pieces import join_losses, standard_error
from search.row_split import RowSplit
from search.strategies.grid import Indices


class Examiner:
    """Measures candidates on the rows of a search.

    Args:
        measure: measures candidates on some rows, many at a time.
        journal: what was measured, and where it is kept.
        split: which rows choose.
    """

    def __init__(self, measure: Objective, journal: Journal, split: RowSplit) -> None:
        self._measure = measure
        self.journal = journal
        self.split = split

    def explore(self, candidates: Sequence[Indices]) -> Iterator[CandidateFigures]:
        """Measure candidates on the first part of the rows that choose."""
        return self._measure([(indices, range(self.split.parts[0])) for indices in candidates])

    def extend(self, records: Sequence[Record], rows: int) -> Iterator[Record]:
        """The same sub-networks on the first `rows` rows that choose; only those that one has not seen are measured.

        Args:
            records: of different candidates.
            rows: of those that choose.
        """
        known = {record.choice_idx: self.journal.find(record.choice_idx, "raced", rows=rows) for record in records}
        lacking = [record for record in records if record.n_eval < rows and known[record.choice_idx] is None]
        added = self._measure([(record.choice_idx, range(record.n_eval, rows)) for record in lacking])
        for record in records:
            if record.n_eval >= rows:
                yield record
            else:
                yield known[record.choice_idx] or self._extended(record, next(added), rows)

    def hold_against(self, records: Sequence[Record]) -> list[Record]:
        """The same sub-networks on the rows that are held back; nothing where there are none.

        For what has been chosen, and what it is compared with: a row that has been looked at chooses nothing any more.
        """
        positions = self.split.held_back
        if not positions:
            return []
        known = {record.choice_idx: self.journal.find(record.choice_idx, "held_back") for record in records}
        added = self._measure([(indices, positions) for indices, found in known.items() if found is None])
        return [known[record.choice_idx] or self._held_back(record, next(added)) for record in records]

    def _extended(self, record: Record, added: CandidateFigures, rows: int) -> Record:
        answers = (*(record.answers or ()), *(added.answers or ()))
        losses = join_losses([record.losses, added.losses])
        figures = {
            "part": "raced",
            "accuracy": math.fsum(answers) / rows,
            "accuracy_stderr": standard_error(answers),
            "loss": None if losses is None else math.fsum(losses) / rows,
            "n_eval": rows,
            "eval_split_sha256": self.split.sha256(range(rows)),
            "answers": answers,
            "losses": losses,
        }
        return self._add(record, figures, seconds=added.seconds)

    def _held_back(self, record: Record, added: CandidateFigures) -> Record:
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
