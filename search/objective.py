"""What a search measures of a candidate: accuracy on validation rows, and the parameters that it costs.

Answers are measured, a piece of the rows at a time, where a super-network is loaded with its weights. What a candidate
costs is counted by its shape, in the process that leads the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.costing import CostCounter
from search.pieces import Piece, PieceOutcome
from search.row_split import RowSplit
from search.strategies.grid import FROZEN, Indices
from search.strategies.strategy import Cost
from shearling.errors import ShearlingError, UsageError

if TYPE_CHECKING:
    from shearling.elastic.super_network import SuperNetwork
    from shearling.evaluation.evaluator import Measure


@dataclass(frozen=True)
class CandidateFigures:
    """What was measured; the fields are those of the journal."""

    accuracy: float
    accuracy_stderr: float | None
    loss: float | None
    n_eval: int
    eval_split_sha256: str
    adapter_params: int
    nonzero_params: int
    seconds: float
    parameters: int | None = None
    macs_m: float | None = None
    model_bytes: int | None = None
    latency_ms: float | None = None
    cost_kind: Cost = "adapter_params"
    answers: tuple[float, ...] | None = None
    losses: tuple[float, ...] | None = None


Objective = Callable[[Sequence[tuple[Indices, range]]], Iterator[CandidateFigures]]
"""Measures candidates, each on the rows at some positions, see `RowSplit`; gives the figures in that order, each as
soon as it and those before it are known. The same gives the same result, time apart."""


class SubnetObjective:
    """Activates a sub-network and evaluates it.

    Args:
        network: the super-network.
        evaluate: measures the active sub-network on rows of the validation split.
        split: which rows choose.
        counter: counts what candidates cost; None in workers, which measure alone.
        cost: what the search saves.
    """

    def __init__(
        self,
        network: SuperNetwork,
        evaluate: Measure,
        split: RowSplit,
        *,
        counter: CostCounter | None = None,
        cost: Cost = "adapter_params",
    ) -> None:
        self._network = network
        self._evaluate = evaluate
        self._split = split
        self._counter = counter
        self._cost = cost
        self._active: Indices | None = None
        self._held: ExitStack | None = None

    @property
    def counter(self) -> CostCounter:
        """Of a search that this process leads."""
        if self._counter is None:
            raise ShearlingError("a worker was asked what a candidate costs")
        return self._counter

    def count(self, indices: Indices) -> float:
        """What a candidate costs, in the unit of the journal, by its shape alone."""
        return self.counter.count(indices, self._cost)

    def measure(self, piece: Piece) -> PieceOutcome:
        """Answers of a candidate to the rows of a piece.

        Raises:
            UsageError: the task does not say of each row how right its answer is.
        """
        self._hold(piece.indices)
        evaluation = self._evaluate(self._split.places_of(piece.positions))
        if len(evaluation.answers) != len(piece.positions):
            raise UsageError(
                f"it scores {len(evaluation.answers)} of {len(piece.positions)} rows one by one, and sub-networks are "
                "compared row by row",
                where=f"task {evaluation.task}",
                remedy="Search on a task that reports acc or exact_match",
            )
        return PieceOutcome(
            accuracy=evaluation.accuracy,
            accuracy_stderr=evaluation.accuracy_stderr,
            loss=evaluation.loss,
            answers=evaluation.answers,
            losses=None if evaluation.losses is None else tuple(round(loss, 6) for loss in evaluation.losses),
            seconds=evaluation.seconds,
        )

    def figures(self, indices: Indices, positions: range, measured: PieceOutcome) -> CandidateFigures:
        """What was measured of a candidate, and what it costs by its shape.

        Args:
            indices: the candidate.
            positions: of the rows that it was measured on.
            measured: there.
        """
        return CandidateFigures(
            accuracy=measured.accuracy,
            accuracy_stderr=measured.accuracy_stderr,
            loss=measured.loss,
            n_eval=len(positions),
            eval_split_sha256=self._split.sha256(positions),
            seconds=measured.seconds,
            cost_kind=self._cost,
            answers=measured.answers,
            losses=measured.losses,
            **vars(self.counter.costs(indices)),
        )

    def release(self) -> None:
        """Hold no merged weights any more."""
        if self._held is not None:
            self._held.close()
        self._held = self._active = None

    def forget_weights(self) -> None:
        """Give the memory of the weights back, where others measure; what a candidate costs can still be counted."""
        self.release()
        self._network.model.to("meta")

    def _hold(self, indices: Indices) -> None:
        """Make a candidate the model, merged, until another one is measured: its pieces come one after another."""
        if indices == self._active:
            return
        self.release()
        network, self._held = self._network, ExitStack()
        if indices == FROZEN:
            self._held.enter_context(network.without_adapters())
        else:
            network.activate(network.space.decode(indices))
            self._held.enter_context(network.materialised())
        self._active = indices
