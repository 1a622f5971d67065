"""What candidates cost: counted by their shape, in the process that leads the search; nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.cost_words import COSTS
from search.latency.table import LatencyTable
from search.layer_forms import LayerForm, LayerForms, linked_groups
from search.stored_bytes import StoredBytes, StoredForm
from search.strategies.grid import Indices
from search.strategies.strategy import Cost
from shearling.elastic.size import measure_network

if TYPE_CHECKING:
    from torch import Tensor

    from shearling.elastic.super_network import SuperNetwork


@dataclass(frozen=True)
class CandidateCosts:
    """Everything that is counted; the fields are those of the journal."""

    adapter_params: int
    nonzero_params: int
    parameters: int
    macs_m: float
    model_bytes: int
    latency_ms: float | None


class CostCounter:
    """Counts what candidates cost.

    Args:
        network: the super-network, with its weights; they are not needed any more afterwards.
        tokens: of the forward whose MACs are counted.
        stored: how the export stores weights.
        latency: of the layers' forms on the target; None where the search does not ask for it.
    """

    def __init__(
        self, network: SuperNetwork, *, tokens: int, stored: StoredForm, latency: LatencyTable | None = None
    ) -> None:
        self._network = network
        self._tokens = tokens
        self._latency = latency
        self._forms = LayerForms(network)
        self._size = measure_network(network)
        self._bytes = StoredBytes(network, self._forms, stored)
        self._nonzero = _NonzeroCounts(network, self._forms)
        self._linked = linked_groups(network.space)
        self._known: dict[Indices, CandidateCosts] = {}

    def costs(self, indices: Indices) -> CandidateCosts:
        """All that a candidate costs."""
        space = self._network.space
        choice = space.decode(indices)
        cuts, forms = space.cuts(choice), self._forms.of(choice)
        adapter_params = self._network.adapter_params(choice)
        # 0 where the update is merged: it disappears into the weights that are there.
        beside = sum(form.rank * (form.out_features + form.in_features) for form in forms.values())
        macs = self._size.macs(tokens=self._tokens, cuts=cuts) + beside * self._tokens
        return CandidateCosts(
            adapter_params=adapter_params,
            nonzero_params=self._nonzero.count(forms) + beside,
            parameters=self._size.parameters(cuts) + beside,
            macs_m=macs / 1e6,
            model_bytes=self._bytes.count(forms),
            latency_ms=None if self._latency is None else self._latency.predict_ms(forms),
        )

    def count(self, indices: Indices, cost: Cost) -> float:
        """One cost of a candidate, in the unit of the journal, up to rounding; 0 where nothing is saved.

        Costs are sums over layers, so that what a set of linked groups adds is counted once: a search that keeps a
        limit asks for thousands of candidates.
        """
        field = COSTS[cost].field
        if field is None:
            return 0.0
        largest = self._field((0,) * len(indices), field)
        return largest + sum(self._difference(indices, places, field, largest) for places in self._linked)

    def _difference(self, indices: Indices, places: tuple[int, ...], field: str, largest: float) -> float:
        """What a candidate costs more than the largest, as far as these groups are the cause."""
        alone = [0] * len(indices)
        for place in places:
            alone[place] = indices[place]
        return self._field(tuple(alone), field) - largest

    def _field(self, indices: Indices, field: str) -> float:
        known = self._known.get(indices)
        if known is None:
            known = self._known[indices] = self.costs(indices)
        return getattr(known, field) or 0.0


class _NonzeroCounts:
    """Nonzero weights of the frozen model, those that narrower layers leave out not counted."""

    def __init__(self, network: SuperNetwork, forms: LayerForms) -> None:
        self._counts: dict[str, dict[LayerForm, int]] = {}
        self._others = count_frozen_nonzero(network)
        for path, variants in forms.variants().items():
            layer = network.elastic(path)
            self._counts[path] = {}
            # The frozen model has the zeros of the first form.
            for percent in dict.fromkeys(form.percent for form in variants):
                found = [form for form in variants if form.percent == percent]
                self._counts[path] |= _count_prefixes(network.weight_at(path, percent), layer.bias, found)
            self._others -= self._counts[path][variants[0]]

    def count(self, forms: Mapping[str, LayerForm]) -> int:
        return self._others + sum(self._counts[path][form] for path, form in forms.items())


def _count_prefixes(weight: Tensor, bias: Tensor | None, forms: Sequence[LayerForm]) -> dict[LayerForm, int]:
    """Nonzero weights of every form of a layer, in one pass for each input width."""
    nonzero = weight.detach() != 0
    # [rows]: of the first columns of each row.
    by_row = {columns: nonzero[:, :columns].sum(dim=1) for columns in {form.in_features for form in forms}}
    counts = {}
    for form in forms:
        counts[form] = int(by_row[form.in_features][: form.out_features].sum())
        counts[form] += 0 if bias is None else int(bias[: form.out_features].count_nonzero())
    return counts


def count_frozen_nonzero(network: SuperNetwork) -> int:
    """Nonzero parameters of the frozen model; tied ones count once."""
    adapters = {id(parameter) for layer in network.layers.values() for parameter in (layer.lora_a, layer.lora_b)}
    return sum(
        int(parameter.count_nonzero()) for parameter in network.model.parameters() if id(parameter) not in adapters
    )
