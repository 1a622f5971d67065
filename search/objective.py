"""What a search measures of a candidate: accuracy on validation rows, and the parameters that it costs.

Answers are measured, a piece of the rows at a time, where a super-network is loaded with its weights. What a candidate
costs is counted by its shape, in the process that leads the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.latency_probe import LatencyProbe
from search.pieces import Piece, PieceOutcome
from search.row_split import RowSplit
from search.strategies.grid import Indices
from search.strategies.strategy import Cost
from shearling.elastic.size import measure_network
from shearling.errors import UsageError

if TYPE_CHECKING:
    from shearling.elastic.super_network import SuperNetwork
    from shearling.evaluation.evaluator import Measure
    from shearling.model.narrow_layers import Cut


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
        cost: what the search saves.
        tokens: of the forward whose MACs are counted or whose time is taken.
    """

    def __init__(
        self,
        network: SuperNetwork,
        evaluate: Measure,
        split: RowSplit,
        *,
        cost: Cost = "adapter_params",
        tokens: int = 256,
    ) -> None:
        self._network = network
        self._evaluate = evaluate
        self._split = split
        self._cost = cost
        self._tokens = tokens
        self._size = measure_network(network)
        self._frozen_nonzero = count_frozen_nonzero(network)
        self._probe = LatencyProbe(network, tokens=tokens) if cost == "latency" else None
        self._active: Indices | None = None
        self._held: ExitStack | None = None

    def count(self, indices: Indices) -> float:
        """What a candidate costs, in the unit of the journal, by its shape alone; a latency is not counted.

        Raises:
            UsageError: the search saves latency.
        """
        choice = self._network.space.decode(indices)
        cuts, adapter_params = self._network.space.cuts(choice), self._network.adapter_params(choice)
        match self._cost:
            case "adapter_params":
                return adapter_params
            case "parameters":
                return self._parameters(cuts, adapter_params)
            case "macs":
                return self._macs_m(cuts, adapter_params)
            case "latency":
                raise UsageError(
                    "a latency is measured, not counted, so a search cannot keep it below a limit",
                    where="max_cost_share",
                    remedy="Limit macs, parameters or adapter_params",
                )

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
        timed = self._probe is not None and piece.start == 0
        return PieceOutcome(
            accuracy=evaluation.accuracy,
            accuracy_stderr=evaluation.accuracy_stderr,
            loss=evaluation.loss,
            answers=evaluation.answers,
            losses=None if evaluation.losses is None else tuple(round(loss, 6) for loss in evaluation.losses),
            nonzero_params=self._nonzero(),
            latency_ms=self._probe.measure_ms() if self._probe is not None and timed else None,
            seconds=evaluation.seconds,
        )

    def figures(self, indices: Indices, positions: range, measured: PieceOutcome) -> CandidateFigures:
        """What was measured of a candidate, and what it costs by its shape.

        Args:
            indices: the candidate.
            positions: of the rows that it was measured on.
            measured: there.
        """
        choice = self._network.space.decode(indices)
        cuts, adapter_params = self._network.space.cuts(choice), self._network.adapter_params(choice)
        # An update under the mask disappears into the weights that are there; a plain one is stored beside them, unless
        # the frozen model is dense and takes it in.
        beside = 0 if self._network.space.adapter.masked_training else adapter_params
        return CandidateFigures(
            accuracy=measured.accuracy,
            accuracy_stderr=measured.accuracy_stderr,
            loss=measured.loss,
            n_eval=len(positions),
            eval_split_sha256=self._split.sha256(positions),
            adapter_params=adapter_params,
            nonzero_params=measured.nonzero_params + beside,
            seconds=measured.seconds,
            parameters=self._parameters(cuts, adapter_params),
            macs_m=self._macs_m(cuts, adapter_params),
            latency_ms=measured.latency_ms,
            cost_kind=self._cost,
            answers=measured.answers,
            losses=measured.losses,
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
        self._network.activate(self._network.space.decode(indices))
        self._held = ExitStack()
        self._held.enter_context(self._network.materialised())
        self._active = indices

    def _parameters(self, cuts: Mapping[str, Cut], adapter_params: int) -> int:
        return self._size.parameters(cuts) + self._separate(adapter_params)

    def _macs_m(self, cuts: Mapping[str, Cut], adapter_params: int) -> float:
        return (self._size.macs(tokens=self._tokens, cuts=cuts) + self._separate(adapter_params) * self._tokens) / 1e6

    def _separate(self, adapter_params: int) -> int:
        """Weights of the adapter that are computed beside those of the frozen model: a plain update of sparse ones."""
        return (
            adapter_params if self._network.masks is not None and not self._network.space.adapter.masked_training else 0
        )

    def _nonzero(self) -> int:
        """Nonzero weights of the frozen model, those that the active widths leave out not counted."""
        dropped = 0
        for path in self._network.space.cuts(self._network.space.maximal()):
            layer = self._network.layers.get(path) or self._network.unadapted[path]
            bias = 0 if layer.bias is None else int(layer.bias[layer.active_out :].count_nonzero())
            dropped += (
                int(layer.weight.count_nonzero())
                - int(layer.weight[: layer.active_out, : layer.active_in].count_nonzero())
                + bias
            )
        return self._frozen_nonzero - dropped


def count_frozen_nonzero(network: SuperNetwork) -> int:
    """Nonzero parameters of the frozen model; tied ones count once."""
    adapters = {id(parameter) for layer in network.layers.values() for parameter in (layer.lora_a, layer.lora_b)}
    return sum(
        int(parameter.count_nonzero()) for parameter in network.model.parameters() if id(parameter) not in adapters
    )
