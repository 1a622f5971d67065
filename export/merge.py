"""From a super-network and a choice to one plain model: the merge modes.

masked     W + (s B A) ∘ M    every zero stays; bit-exact where training was masked
dense      W + s B A          exact, the zeros of adapted modules are lost
separate   W x + s B (A x)    the ranks stay beside the sparse weight in the graph
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shearling.elastic_lora import ElasticLoraLinear, effective_weight
from shearling.errors import NonFiniteWeights
from shearling.mask import Masks
from shearling.merge_rule import MergeMode
from shearling.search_space import Choice
from shearling.super_network import SuperNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SeparateLowRank(nn.Module):
    """y = W x + b + s B (A x) with the ranks of one sub-network; a plain graph that every exporter traces.

    Args:
        layer: the elastic layer, at its active rank.
    """

    def __init__(self, layer: ElasticLoraLinear) -> None:
        super().__init__()
        self.base = _linear(layer, layer.weight.detach())
        self.lora_a = nn.Linear(layer.in_features, layer.rank, bias=False)
        self.lora_b = nn.Linear(layer.rank, layer.out_features, bias=False)
        self.scaling = layer.scaling
        with torch.no_grad():
            self.lora_a.weight.copy_(layer.lora_a[: layer.rank])
            self.lora_b.weight.copy_(layer.lora_b[:, : layer.rank])

    def forward(self, x: Tensor) -> Tensor:
        """Apply both branches to x [..., in]; returns [..., out]."""
        y: Tensor = self.base(x) + self.lora_b(self.lora_a(x)) * self.scaling
        return y


def merge(network: SuperNetwork, choice: Choice, mode: MergeMode, *, masks: Masks | None) -> PreTrainedModel:
    """Make the chosen sub-network a plain model, in place, in float32.

    Args:
        network: the super-network; used up by the call.
        choice: group id -> rank.
        mode: how; whether it is allowed was settled by `shearling.merge_rule.resolve_merge`.
        masks: of the pruned modules; needed by `masked`.

    Returns:
        The network's model, with `nn.Linear` (or `SeparateLowRank`) in place of the elastic layers.

    Raises:
        NonFiniteWeights: a merged weight holds NaN or infinity; names the module.
    """
    network.activate(choice)
    modules = dict(network.model.named_modules())
    for path, layer in network.layers.items():
        parent, _, name = path.rpartition(".")
        setattr(modules[parent], name, _merged_module(layer, path, mode, masks))
    return network.model.eval()


def _merged_module(layer: ElasticLoraLinear, path: str, mode: MergeMode, masks: Masks | None) -> nn.Module:
    if mode == "separate":
        return SeparateLowRank(layer)
    if mode == "masked" and masks is None:
        raise ValueError("a masked merge needs the masks")
    mask = masks[path] if mode == "masked" and masks is not None else None
    with torch.no_grad():
        weight = effective_weight(layer.weight, layer.lora_a[: layer.rank], layer.lora_b[:, : layer.rank], scaling=layer.scaling, mask=mask)
    if not torch.isfinite(weight).all():
        raise NonFiniteWeights("the merged weight holds NaN or infinity", where=path)
    return _linear(layer, weight)


def _linear(layer: ElasticLoraLinear, weight: Tensor) -> nn.Linear:
    # On the meta device first: the weights that a constructor would draw are never used.
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return linear
