"""Measurements of candidates, made by an executor in whatever order, and given in the order that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from search.objective import CandidateFigures
from search.piece_store import PieceStore
from search.pieces import Piece, PieceOutcome, cut, join
from search.strategies.grid import Indices
from shearling.executors.executor import Executor, Job

Figures = Callable[[Indices, range, PieceOutcome], CandidateFigures]
"""What was measured of a candidate on some rows, and what it costs; see `SubnetObjective.figures`."""


class Measurements:
    """An `Objective` whose pieces are measured by an executor, and kept.

    Args:
        executor: its work makes a `PieceOutcome` of a `Piece`.
        store: what was measured before, and where pieces are kept as they are finished.
        figures: adds what a candidate costs.
    """

    def __init__(self, executor: Executor, store: PieceStore, figures: Figures) -> None:
        self._executor = executor
        self._store = store
        self._figures = figures

    def __call__(self, requests: Sequence[tuple[Indices, range]]) -> Iterator[CandidateFigures]:
        """See `Objective`."""
        for (indices, positions), outcome in zip(requests, self.outcomes(requests), strict=True):
            yield self._figures(indices, positions, outcome)

    def outcomes(self, requests: Sequence[tuple[Indices, range]]) -> Iterator[PieceOutcome]:
        """What is measured alone, without what a candidate costs; of FROZEN as well."""
        cuts = [cut(indices, positions) for indices, positions in requests]
        lacking = [piece for pieces in cuts for piece in pieces if self._store.find(piece) is None]
        running = self._executor.run([Job(piece, key=piece.indices) for piece in lacking])
        for pieces in cuts:
            yield join([self._wait_for(piece, lacking, running) for piece in pieces])

    def _wait_for(
        self, piece: Piece, lacking: Sequence[Piece], running: Iterator[tuple[int, PieceOutcome]]
    ) -> PieceOutcome:
        while (found := self._store.find(piece)) is None:
            place, outcome = next(running)
            self._store.keep(lacking[place], outcome)
        return found
