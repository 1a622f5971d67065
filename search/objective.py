"""What a search measures of a candidate: accuracy on validation rows, and the parameters that it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.latency_probe import LatencyProbe
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


Objective = Callable[[Indices, range], CandidateFigures]
"""Measures one candidate on the rows at some positions, see `RowSplit`; the same gives the same result, time apart."""


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

    def measure(self, indices: Indices, positions: range) -> CandidateFigures:
        """See `Objective`.

        Raises:
            UsageError: the task does not say of each row how right its answer is.
        """
        choice = self._network.space.decode(indices)
        self._network.activate(choice)
        with self._network.materialised():
            evaluation = self._evaluate(self._split.places_of(positions))
            latency_ms = None if self._probe is None else self._probe.measure_ms()
        if len(evaluation.answers) != len(positions):
            raise UsageError(
                f"it scores {len(evaluation.answers)} of {len(positions)} rows one by one, and sub-networks are "
                "compared row by row",
                where=f"task {evaluation.task}",
                remedy="Search on a task that reports acc or exact_match",
            )
        cuts, adapter_params = self._network.space.cuts(choice), self._network.adapter_params(choice)
        # An update under the mask disappears into the weights that are there; a plain one is stored beside them, unless
        # the frozen model is dense and takes it in.
        beside = 0 if self._network.space.adapter.masked_training else adapter_params
        return CandidateFigures(
            accuracy=evaluation.accuracy,
            accuracy_stderr=evaluation.accuracy_stderr,
            loss=evaluation.loss,
            n_eval=evaluation.n,
            eval_split_sha256=self._split.sha256(positions),
            adapter_params=adapter_params,
            nonzero_params=self._nonzero() + beside,
            seconds=evaluation.seconds,
            parameters=self._parameters(cuts, adapter_params),
            macs_m=self._macs_m(cuts, adapter_params),
            latency_ms=latency_ms,
            cost_kind=self._cost,
            answers=evaluation.answers,
            losses=None if evaluation.losses is None else tuple(round(loss, 6) for loss in evaluation.losses),
        )

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
