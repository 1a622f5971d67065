"""What a search measures of a candidate: accuracy on validation rows, and the parameters that it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from search.strategy import Indices

if TYPE_CHECKING:
    from shearling.causal_scorer import CausalScorer
    from shearling.evaluation import Evaluator
    from shearling.super_network import SuperNetwork


@dataclass(frozen=True)
class Measurement:
    """What was measured; the fields are those of the journal."""

    accuracy: float
    accuracy_stderr: float | None
    loss: float | None
    n_eval: int
    eval_split_sha256: str
    adapter_params: int
    nonzero_params: int
    seconds: float


class Objective(Protocol):
    """Measures candidates."""

    def measure(self, indices: Indices) -> Measurement:
        """Measure one candidate; the same candidate gives the same result, time apart."""
        ...


class SubnetObjective:
    """Activates a sub-network and evaluates it.

    Args:
        network: the super-network.
        evaluator: of the validation split.
        scorer: of the network's model.
    """

    def __init__(self, network: SuperNetwork, evaluator: Evaluator, scorer: CausalScorer) -> None:
        self._network = network
        self._evaluator = evaluator
        self._scorer = scorer
        self._frozen_nonzero = count_frozen_nonzero(network)

    def measure(self, indices: Indices) -> Measurement:
        """See `Objective.measure`."""
        choice = self._network.space.decode(indices)
        self._network.activate(choice)
        with self._network.materialised():
            evaluation = self._evaluator.measure(self._scorer)
        adapter_params = self._network.adapter_params(choice)
        # An update under the mask disappears into the weights that are there; a plain one is stored beside them.
        beside = 0 if self._network.space.adapter.masked_training else adapter_params
        return Measurement(
            accuracy=evaluation.accuracy,
            accuracy_stderr=evaluation.accuracy_stderr,
            loss=evaluation.loss,
            n_eval=evaluation.n,
            eval_split_sha256=evaluation.rows_sha256,
            adapter_params=adapter_params,
            nonzero_params=self._frozen_nonzero + beside,
            seconds=evaluation.seconds,
        )


def count_frozen_nonzero(network: SuperNetwork) -> int:
    """Nonzero parameters of the frozen model; tied ones count once."""
    adapters = {id(parameter) for layer in network.layers.values() for parameter in (layer.lora_a, layer.lora_b)}
    return sum(int(parameter.count_nonzero()) for parameter in network.model.parameters() if id(parameter) not in adapters)
