"""From a super-network and a choice to one plain model: the merge modes.

masked     W + (s B A) ∘ M    every zero stays; bit-exact where training was masked, and on its grid where it had one;
                              W and M are those of the variant that each layer chose, where there are such
dense      W + s B A          exact, the zeros of adapted modules are lost
separate   W x + s B (A x)    the ranks stay beside the sparse weight in the graph

Where widths are elastic, W, A, B and M are the active rows and columns: the result is physically narrower, and says
so in its configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shearling.elastic.elastic_lora import ElasticLoraLinear, effective_weight
from shearling.elastic.frozen_linear import FrozenLinear
from shearling.elastic.mask import Masks
from shearling.elastic.merge_rule import MergeMode
from shearling.elastic.narrowing import layer_widths
from shearling.elastic.search_space import Choice
from shearling.elastic.super_network import SuperNetwork
from shearling.errors import NonFiniteWeights
from shearling.model.narrow_layers import CONFIG_KEY
from shearling.model.weight_shards import StoredTensor, StoredWeights, writing_weights

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


def merge(
    network: SuperNetwork, choice: Choice, mode: MergeMode, *, masks: Masks | None, checkpoint: Path | None = None
) -> PreTrainedModel:
    """Make the chosen sub-network a plain model, in place, one matrix after the other in float32.

    Args:
        network: the super-network; used up by the call.
        choice: group id -> value.
        mode: how; whether it is allowed was settled by `shearling.elastic.merge_rule.resolve_merge`.
        masks: of the pruned modules, at full width and with the zeros of the choice; needed by `masked`.
        checkpoint: an empty directory for the weights, each rounded to the type that it had there; the model's are then
            views of its files, and no more than one merged matrix is in memory at a time. Not for `separate`, which
            merges nothing. None keeps the merged weights in memory.

    Returns:
        The network's model, with `nn.Linear` (or `SeparateLowRank`) in place of the elastic layers.

    Raises:
        NonFiniteWeights: a merged weight holds NaN or infinity; names the module.
    """
    network.activate(choice)
    widths = layer_widths(network.space, choice, network.model)
    if checkpoint is None:
        for path, module in _merged_modules(network, mode, masks):
            network.model.set_submodule(path, module)
    else:
        _merge_into(checkpoint, network, mode, masks)
    if widths is not None:
        setattr(network.model.config, CONFIG_KEY, widths.model_dump(mode="json", by_alias=True))
    return network.model.eval()


def _merged_modules(network: SuperNetwork, mode: MergeMode, masks: Masks | None) -> Iterator[tuple[str, nn.Module]]:
    """Path and plain module of every elastic layer, which gives up its frozen weight once the next is asked for."""
    for path, layer in network.layers.items():
        yield path, _merged_module(layer, path, mode, masks)
        layer.forget()
    for path, plain in network.unadapted.items():
        yield path, _linear(plain.active_weight(), plain.active_bias())
        plain.forget()


def _merge_into(directory: Path, network: SuperNetwork, mode: MergeMode, masks: Masks | None) -> None:
    """Write every weight of the merged model where it is made, and leave a view of the file in its place."""
    elastic: dict[str, FrozenLinear] = {**network.layers, **network.unadapted}
    tensors = _stored_tensors(network.model, elastic)
    with writing_weights(directory, tensors) as writer:
        for path, module in _merged_modules(network, mode, masks):
            # A bias may be of another type than its weight.
            for leaf, tensor in module.state_dict().items():
                writer.write(f"{path}.{leaf}", tensor.to(getattr(elastic[path], leaf).dtype))
            network.model.set_submodule(path, module.to("meta"))
        for name in writer.missing:
            writer.write(name, _tensor_of(network.model, name))
    stored = StoredWeights(directory)
    for names in _tied_names(network.model):
        # One parameter for all names of a tied tensor, as it was.
        view = nn.Parameter(stored.read(names[0]), requires_grad=False)
        for name in names:
            _put(network.model, name, view)


def _stored_tensors(model: nn.Module, elastic: Mapping[str, FrozenLinear]) -> dict[str, StoredTensor]:
    """What the merged model's checkpoint holds, in the order of the model; a tied tensor once, under its first name."""
    state = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    tensors = {}
    for name in first.values():
        path, _, leaf = name.rpartition(".")
        found, layer = StoredTensor.of(state[name]), elastic.get(path)
        if layer is None:
            tensors[name] = found
        elif leaf in ("weight", "bias"):
            shape = (layer.active_out, layer.active_in)[: len(found.shape)]
            tensors[name] = StoredTensor(found.dtype, shape)
    return tensors


def _tied_names(model: nn.Module) -> list[list[str]]:
    """Names of every stored tensor, all of one that is tied together, the one that it is stored by first."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def _tensor_of(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), leaf)
    return tensor.detach()


def _put(model: nn.Module, name: str, value: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = value.detach()
    else:
        owner._parameters[leaf] = value


def _merged_module(layer: ElasticLoraLinear, path: str, mode: MergeMode, masks: Masks | None) -> nn.Module:
    if mode == "separate":
        return SeparateLowRank(layer)
    if mode == "masked" and masks is None:
        raise ValueError("a masked merge needs the masks")
    mask = masks[path][: layer.active_out, : layer.active_in] if mode == "masked" and masks is not None else None
    parts = layer.active_parts()
    with torch.no_grad():
        # A format that was chosen for the layer holds however it is merged, the grid of its training under the mask.
        grid = layer.grid if mode == "masked" else layer.rounding
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
