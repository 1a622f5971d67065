"""The forms that a linear layer can take in a search space: its sizes, the rank that is computed beside it, and its
zeros and its number format where they are chosen.

What a candidate costs is a sum over its layers, and how many different layers there are is a small number.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shearling.elastic.merge_rule import keeps_ranks_apart
from shearling.model.narrow_layers import Cut

if TYPE_CHECKING:
    from shearling.elastic.search_space import Choice, SearchSpace
    from shearling.elastic.super_network import SuperNetwork


@dataclass(frozen=True, order=True)
class LayerForm:
    """One form of a layer.

    Attributes:
        rank: of the adapter that stays beside the weight; 0 where it is merged.
        percent: of zeros; 0 where a layer has no choice of them.
        bits: of its integers; 0 where the export decides on its number format.
    """

    out_features: int
    in_features: int
    rank: int = 0
    percent: int = 0
    bits: int = 0

    def __str__(self) -> str:
        rank = f" with rank {self.rank}" if self.rank else ""
        zeros = f", {self.percent} % zeros" if self.percent else ""
        return f"[{self.out_features}, {self.in_features}]{rank}{zeros}" + (f", int{self.bits}" if self.bits else "")


class LayerForms:
    """The layers that the choice of a sub-network changes.

    Args:
        network: the super-network, on any device.
    """

    def __init__(self, network: SuperNetwork) -> None:
        self._space = network.space
        self._separate = keeps_ranks_apart(network.space, sparse=network.masks is not None)
        paths = dict.fromkeys(self._space.cuts(self._space.maximal()))
        paths |= dict.fromkeys(network.layers if self._separate else ())
        paths |= dict.fromkeys(path for group in self._space.mixed_groups for path in group.modules)
        self._full: dict[str, tuple[int, int]] = {}
        for path in paths:
            layer = network.elastic(path)
            self._full[path] = layer.out_features, layer.in_features

    def of(self, choice: Choice) -> dict[str, LayerForm]:
        """Path -> form of every layer in a sub-network."""
        cuts = self._space.cuts(choice)
        ranks = self._space.ranks(choice) if self._separate else {}
        percents, bits = self._space.percents(choice), self._space.bits(choice)
        return {
            path: LayerForm(
                cuts.get(path, Cut()).out_features or full_out,
                cuts.get(path, Cut()).in_features or full_in,
                ranks.get(path, 0),
                percents.get(path, 0),
                bits.get(path, 0),
            )
            for path, (full_out, full_in) in self._full.items()
        }

    def variants(self) -> dict[str, list[LayerForm]]:
        """Path -> every form that it can take, the largest first."""
        outs: dict[str, tuple[int, ...]] = defaultdict(tuple)
        ins, ranks, percents, bits = (outs.copy() for _ in range(4))
        for group in self._space.groups:
            match group.kind:
                case "rank":
                    ranks |= dict.fromkeys(group.modules if self._separate else (), group.values)
                case "sparsity":
                    percents |= dict.fromkeys(group.modules, group.values)
                case "format":
                    bits |= dict.fromkeys(group.modules, group.values)
        for group in self._space.width_groups:
            outs |= dict.fromkeys(group.modules, group.values)
            outs |= dict.fromkeys(group.grouped, tuple(value // group.group for value in group.values))
            ins |= dict.fromkeys(group.consumers, group.values)
        rest = ranks, percents, bits
        return {
            path: [
                LayerForm(*sizes)
                for sizes in itertools.product(
                    outs[path] or (full[0],), ins[path] or (full[1],), *(each[path] or (0,) for each in rest)
                )
            ]
            for path, full in self._full.items()
        }

    def every(self) -> list[LayerForm]:
        """The different forms of all layers, in order."""
        return sorted({form for forms in self.variants().values() for form in forms})


def linked_groups(space: SearchSpace) -> list[tuple[int, ...]]:
    """The groups of a space, by their places, in sets that share layers: what a layer costs follows from one set."""
    sets: list[tuple[set[int], set[str]]] = []
    for place, group in enumerate(space.groups):
        places, paths = {place}, {*group.modules, *group.grouped, *group.consumers}
        apart = []
        for other_places, other_paths in sets:
            if paths & other_paths:
                places |= other_places
                paths |= other_paths
            else:
                apart.append((other_places, other_paths))
        sets = [*apart, (places, paths)]
    return [tuple(sorted(places)) for places, _ in sets]
