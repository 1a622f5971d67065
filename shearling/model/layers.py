"""The structure of a transformer, found by looking at the model rather than by knowing its class.

The transformer layers are the one `ModuleList` of like modules that holds nearly all linear weights; what is prunable
are the `nn.Linear` modules inside them. That holds for Llama, Mistral, Qwen, Phi, Gemma, BLOOM, BERT and every
transformer laid out like them, and for mixtures of experts once `separate_experts` has passed them. What other matrices
a layer has, such as routers, is named; where they are more than a few weights, the model is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shearling.errors import ModelUnsupported

LEAST_SEEN = 0.95
"""Share of a layer's matrices that must be linears: what is left dense is a router, a table of positions, a filter."""

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TransformerLayers:
    """Where the parts of a transformer are.

    Attributes:
        layers_path: path of the layer list, such as `model.layers`.
        layers: the transformer layers, in order.
        linear_names: names of the linear modules, relative to a layer; the same in every layer.
        routed_names: those among them that are parts of experts, which see only the tokens routed to them.
        left_names: names of the parameters of two and more dimensions that belong to no linear, relative to a layer.
    """

    layers_path: str
    layers: tuple[nn.Module, ...]
    linear_names: tuple[str, ...]
    routed_names: frozenset[str] = frozenset()
    left_names: tuple[str, ...] = ()

    def module_path(self, layer: int, name: str) -> str:
        """Absolute path of a module of one layer: `model.layers.3` + `mlp.up_proj`."""
        return f"{self.layers_path}.{layer}.{name}"

    def linears(self) -> dict[str, nn.Linear]:
        """Every prunable linear by absolute path, layer by layer."""
        return {path: linear for index in range(len(self.layers)) for path, linear in self.linears_of(index).items()}

    def linears_of(self, layer: int) -> dict[str, nn.Linear]:
        """The prunable linears of one layer by absolute path."""
        modules = dict(self.layers[layer].named_modules())
        return {self.module_path(layer, name): modules[name] for name in self.linear_names}

    def is_routed(self, path: str) -> bool:
        """Whether a linear is a part of an expert; `path` is absolute."""
        return path.removeprefix(f"{self.layers_path}.").partition(".")[2] in self.routed_names

    def left_dense(self) -> dict[str, int]:
        """Every matrix inside the layers that is no linear's, by absolute path, and its number of weights."""
        found: dict[str, int] = {}
        for index, layer in enumerate(self.layers):
            parameters = dict(layer.named_parameters())
            found |= {self.module_path(index, name): parameters[name].numel() for name in self.left_names}
        return found


def find_layers(model: nn.Module) -> TransformerLayers:
    """Find the transformer layers of a causal language model or a classifier.

    Args:
        model: a Hugging Face model; on any device, also meta.

    Raises:
        ModelUnsupported: there is no list of like layers with linears in it, the layers differ from each other, they
            are quantized, or hold many weights in other modules.
    """
    from torch import nn

    from shearling.model.experts import routed_shares

    candidates = [
        (sum(parameter.numel() for parameter in module.parameters()), path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 0
        and any(isinstance(inner, nn.Linear) for inner in module.modules())
    ]
    if not candidates:
        raise ModelUnsupported(
            f"no list of transformer layers with torch.nn.Linear modules{_other_linears(model)}",
            where=type(model).__name__,
            remedy="Give a decoder, or an encoder to classify with, of an architecture in docs/models.md",
        )
    # The outermost list wins over lists nested in it (experts), since it holds at least as many parameters and comes
    # first.
    _, path, layers = max(candidates, key=lambda candidate: candidate[0])
    names = [_linear_names(layer) for layer in layers]
    for index, found in enumerate(names):
        if found != names[0]:
            different = sorted(set(found) ^ set(names[0]))
            raise ModelUnsupported(
                f"layer {index} differs from layer 0 in {', '.join(different)}", where=f"{type(model).__name__}.{path}"
            )
    left = [_left_names(layer, names[0], where=f"{path}.{index}") for index, layer in enumerate(layers)]
    return TransformerLayers(
        layers_path=path,
        layers=tuple(layers),
        linear_names=names[0],
        routed_names=frozenset(routed_shares(layers[0])),
        left_names=left[0],
    )


def _other_linears(model: nn.Module) -> str:
    """What holds the matrices of a model without linears, such as GPT-2's `Conv1D`."""
    from torch import nn

    found = {
        type(module).__name__
        for module in model.modules()
        if not isinstance(module, nn.Embedding | nn.Linear)
        and any(parameter.ndim == 2 for parameter in module.parameters(recurse=False))
    }
    return f": its matrices are in {', '.join(sorted(found))}" if found else ""


def _left_names(layer: nn.Module, linear_names: tuple[str, ...], *, where: str) -> tuple[str, ...]:
    """Matrices that no linear has, which stay as they are.

    Raises:
        ModelUnsupported: they are too many weights for the layer to be called pruned without them.
    """
    from shearling.model.experts import EXPERT_LAYOUTS

    weights = {f"{name}.weight" for name in linear_names}
    counts = {name: parameter.numel() for name, parameter in layer.named_parameters() if parameter.ndim >= 2}
    left = {name: count for name, count in counts.items() if name not in weights}
    if sum(left.values()) > (1 - LEAST_SEEN) * sum(counts.values()):
        share = sum(left.values()) / sum(counts.values())
        raise ModelUnsupported(
            f"{share:.0%} of the layer's weights are in no torch.nn.Linear and would stay dense: "
            f"{', '.join(sorted(left, key=lambda name: -left[name])[:3])}",
            where=where,
            remedy=f"Mixtures of experts are supported of: {', '.join(sorted(EXPERT_LAYOUTS))}",
        )
    return tuple(left)


def _linear_names(layer: nn.Module) -> tuple[str, ...]:
    from torch import nn

    # Exactly nn.Linear: a subclass is quantized or wrapped already, and pruning it would be silently wrong.
    subclasses = [
        name
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear
    ]
    if subclasses:
        raise ModelUnsupported(
            f"{type(layer.get_submodule(subclasses[0])).__name__} is no plain torch.nn.Linear: the layer is quantized "
            "or wrapped already, or routes tokens in a way of its own",
            where=subclasses[0],
            remedy="Give the plain model in float32, bfloat16 or float16, of an architecture in docs/models.md",
        )
    return tuple(name for name, module in layer.named_modules() if type(module) is nn.Linear)
