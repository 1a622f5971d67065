"""Parameters and multiply-accumulates of a model and of its sub-networks, counted from shapes: no weight is looked at.

MACs of a forward are those of its linear layers, in * out for each token they see (a pooler and a classifier see one,
an expert its share), with the vocabulary projection and without the products inside attention, as LoNAS counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shearling.model.layers import find_layers
from shearling.model.narrow_layers import Cut

if TYPE_CHECKING:
    from torch import nn

    from shearling.elastic.super_network import SuperNetwork


@dataclass(frozen=True)
class LinearShape:
    """One linear layer.

    Attributes:
        stored: its weight is its own; false where it is tied to the embedding.
        every_token: whether it sees every token.
        routed: share of them where it is a part of an expert.
    """

    in_features: int
    out_features: int
    bias: bool
    stored: bool
    every_token: bool
    routed: float = 1.0

    def cut(self, cut: Cut) -> LinearShape:
        """The same with some of its rows and columns."""
        return LinearShape(
            cut.in_features or self.in_features,
            cut.out_features or self.out_features,
            self.bias,
            self.stored,
            self.every_token,
            self.routed,
        )


@dataclass(frozen=True)
class ModelSize:
    """The shapes of a model.

    Attributes:
        linears: by module path.
        other_params: embeddings, norms and whatever else is no linear layer; tied ones once.
    """

    linears: Mapping[str, LinearShape]
    other_params: int

    def parameters(self, cuts: Mapping[str, Cut] | None = None) -> int:
        """All weights, those of cut layers at their active sizes."""
        shapes = self._shapes(cuts)
        return self.other_params + sum(
            shape.in_features * shape.out_features * shape.stored + shape.out_features * shape.bias for shape in shapes
        )

    def macs(self, *, tokens: int, cuts: Mapping[str, Cut] | None = None) -> int:
        """Multiply-accumulates of one forward over a sequence of `tokens`."""
        return round(
            sum(
                shape.in_features * shape.out_features * (tokens * shape.routed if shape.every_token else 1)
                for shape in self._shapes(cuts)
            )
        )

    def _shapes(self, cuts: Mapping[str, Cut] | None) -> list[LinearShape]:
        return [shape.cut((cuts or {}).get(path, Cut())) for path, shape in self.linears.items()]


def measure_model(model: nn.Module) -> ModelSize:
    """Shapes of a plain Hugging Face model, on any device, also meta."""
    return _measure(model, find_layers(model).layers_path, beside=())


def measure_network(network: SuperNetwork) -> ModelSize:
    """Shapes of a super-network at full width, its adapters left out: merged they cost nothing."""
    adapters = [parameter for layer in network.layers.values() for parameter in (layer.lora_a, layer.lora_b)]
    return _measure(network.model, network.space.layers_path, beside=adapters)


def _measure(model: Any, layers_path: str, *, beside: Sequence[Any]) -> ModelSize:
    from shearling.model.experts import routed_shares

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    embedding = model.get_input_embeddings().weight
    linears, counted = {}, {id(parameter) for parameter in beside}
    routed = routed_shares(model)
    for path, module in model.named_modules():
        if not all(hasattr(module, name) for name in ("in_features", "out_features", "weight", "bias")):
            continue
        every_token = path.startswith(f"{layers_path}.") or module is head
        stored = module.weight is not embedding
        linears[path] = LinearShape(
            module.in_features, module.out_features, module.bias is not None, stored, every_token, routed.get(path, 1.0)
        )
        counted |= {id(parameter) for parameter in (module.weight, module.bias) if parameter is not embedding}
    other = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in counted)
    return ModelSize(linears, other)
