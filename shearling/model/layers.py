"""The structure of a transformer, found by looking at the model rather than by knowing its class.

The transformer layers are the one `ModuleList` of like modules that holds nearly all linear weights; what is prunable
are the `nn.Linear` modules inside them. That holds for Llama, Mistral, Qwen, Phi, Gemma, BLOOM, BERT and every
transformer laid out like them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shearling.errors import ModelUnsupported

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TransformerLayers:
    """Where the parts of a transformer are.

    Attributes:
        layers_path: path of the layer list, such as `model.layers`.
        layers: the transformer layers, in order.
        linear_names: names of the linear modules, relative to a layer; the same in every layer.
    """

    layers_path: str
    layers: tuple[nn.Module, ...]
    linear_names: tuple[str, ...]

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


def find_layers(model: nn.Module) -> TransformerLayers:
    """Find the transformer layers of a causal language model or a classifier.

    Args:
        model: a Hugging Face model; on any device, also meta.

    Raises:
        ModelUnsupported: there is no list of like layers with linears in it, the layers differ from each other, or they
            are quantized.
    """
    from torch import nn

    candidates = [
        (sum(parameter.numel() for parameter in module.parameters()), path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 0
        and any(isinstance(inner, nn.Linear) for inner in module.modules())
    ]
    if not candidates:
        raise ModelUnsupported(
            "no list of transformer layers with torch.nn.Linear modules",
            where=type(model).__name__,
            remedy="Give a decoder, or an encoder to classify with",
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
    return TransformerLayers(layers_path=path, layers=tuple(layers), linear_names=names[0])


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
            "the layer is quantized or wrapped already",
            where=subclasses[0],
            remedy="Give the plain model in float32, bfloat16 or float16",
        )
    return tuple(name for name, module in layer.named_modules() if type(module) is nn.Linear)
