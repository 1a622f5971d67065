"""From a super-network and a choice to one plain model: the merge modes.

masked     W + (s B A) ∘ M    every zero stays; bit-exact where training was masked, and on its grid where it had one
dense      W + s B A          exact, the zeros of adapted modules are lost
separate   W x + s B (A x)    the ranks stay beside the sparse weight in the graph

Where widths are elastic, W, A, B and M are the active rows and columns: the result is physically narrower, and says
so in its configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shearling.elastic.elastic_lora import ElasticLoraLinear, effective_weight
from shearling.elastic.mask import Masks
from shearling.elastic.merge_rule import MergeMode
from shearling.elastic.narrowing import layer_widths
from shearling.elastic.search_space import Choice
from shearling.elastic.super_network import SuperNetwork
from shearling.errors import NonFiniteWeights
from shearling.model.narrow_layers import CONFIG_KEY

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SeparateLowRank(nn.Module):
    """y = W x + b + s B (A x) with the ranks of one sub-network; a plain graph that every exporter traces.

    Args:
        layer: the elastic layer, at its active rank.
    """

    def __init__(self, layer: ElasticLoraLinear) -> None:
        super().__init__()
        parts = layer.active_parts()
        self.base = _linear(parts.weight, parts.bias)
        self.lora_a = nn.Linear(layer.active_in, layer.rank, bias=False)
        self.lora_b = nn.Linear(layer.rank, layer.active_out, bias=False)
        self.scaling = layer.scaling
        with torch.no_grad():
            self.lora_a.weight.copy_(parts.lora_a)
            self.lora_b.weight.copy_(parts.lora_b)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both branches to x [..., in]; returns [..., out]."""
        y: Tensor = self.base(x) + self.lora_b(self.lora_a(x)) * self.scaling
        return y


def merge(network: SuperNetwork, choice: Choice, mode: MergeMode, *, masks: Masks | None) -> PreTrainedModel:
    """Make the chosen sub-network a plain model, in place, in float32.

    Args:
        network: the super-network; used up by the call.
        choice: group id -> value.
        mode: how; whether it is allowed was settled by `shearling.elastic.merge_rule.resolve_merge`.
        masks: of the pruned modules, at full width; needed by `masked`.

    Returns:
        The network's model, with `nn.Linear` (or `SeparateLowRank`) in place of the elastic layers.

    Raises:
        NonFiniteWeights: a merged weight holds NaN or infinity; names the module.
    """
    network.activate(choice)
    for path, layer in network.layers.items():
        network.model.set_submodule(path, _merged_module(layer, path, mode, masks))
    for path, plain in network.unadapted.items():
        network.model.set_submodule(path, _linear(plain.active_weight(), plain.active_bias()))
    widths = layer_widths(network.space, choice, network.model)
    if widths is not None:
        setattr(network.model.config, CONFIG_KEY, widths.model_dump(mode="json", by_alias=True))
    return network.model.eval()


def _merged_module(layer: ElasticLoraLinear, path: str, mode: MergeMode, masks: Masks | None) -> nn.Module:
    if mode == "separate":
        return SeparateLowRank(layer)
    if mode == "masked" and masks is None:
        raise ValueError("a masked merge needs the masks")
    mask = masks[path][: layer.active_out, : layer.active_in] if mode == "masked" and masks is not None else None
    parts = layer.active_parts()
    with torch.no_grad():
        grid = layer.grid if mode == "masked" else None
        weight = effective_weight(parts.weight, parts.lora_a, parts.lora_b, scaling=layer.scaling, mask=mask, grid=grid)
    if not torch.isfinite(weight).all():
        raise NonFiniteWeights("the merged weight holds NaN or infinity", where=path)
    return _linear(weight, parts.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out_features, in_features = weight.shape
    # On the meta device first: the weights that a constructor would draw are never used.
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().contiguous(), requires_grad=False)
    return linear
