"""Mixtures of experts, each expert with linear layers of its own.

transformers 5 keeps the experts of a layer as two tensors of three dimensions, which no pruning method, mask, merge or
exporter looks into, and stores them in checkpoints as matrices. Here a model has the modules that its checkpoint names:
`mlp.experts.3.up_proj` is an `nn.Linear` like any other, and sees only the tokens that are routed to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class ExpertLayout:
    """How a checkpoint names the parts of a mixture.

    Attributes:
        block: of a layer, which holds the router and the experts; transformers calls it `mlp`.
        gate: the matrix whose products go through the activation.
        up: the matrix that they are multiplied by.
        down: the matrix back to the width of the hidden states.
    """

    block: str
    gate: str
    up: str
    down: str


_PROJECTIONS = ExpertLayout("mlp", "gate_proj", "up_proj", "down_proj")

EXPERT_LAYOUTS: dict[str, ExpertLayout] = {
    "mixtral": ExpertLayout("block_sparse_moe", "w1", "w3", "w2"),
    "olmoe": _PROJECTIONS,
    "qwen2_moe": _PROJECTIONS,
    "qwen3_moe": _PROJECTIONS,
}
"""`model_type` -> names. These compute down(act(gate(x)) * up(x)) without biases; others are refused by `find_layers`.
"""

_FUSED = "mlp"
"""What transformers calls the block."""


class Expert(nn.Module):
    """One expert: down(act(gate(x)) * up(x)).

    Args:
        layout: names of its matrices.
        gate: [inner, hidden].
        up: [inner, hidden].
        down: [hidden, inner].
        act: the activation.
    """

    def __init__(
        self, layout: ExpertLayout, gate: Tensor, up: Tensor, down: Tensor, act: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self._names = (layout.gate, layout.up, layout.down)
        for name, weight in zip(self._names, (gate, up, down), strict=True):
            self.add_module(name, _linear(weight))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        gate, up, down = (getattr(self, name) for name in self._names)
        y: Tensor = down(self.act(gate(x)) * up(x))
        return y


class SeparateExperts(nn.ModuleList):
    """The experts of one layer, in the place of those of transformers, and called like them."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Let each token be computed by its experts.

        Args:
            hidden_states: [tokens, hidden].
            top_k_index: [tokens, k], the experts of each token.
            top_k_weights: [tokens, k], what each counts.

        Returns:
            [tokens, hidden].
        """
        result = torch.zeros_like(hidden_states)
        if torch.jit._trace.is_tracing() or torch.compiler.is_compiling():
            # A graph has no branch that depends on the tokens: every expert sees all of them, weighted by what the
            # router gives it, which is nothing for most.
            shares = hidden_states.new_zeros(hidden_states.shape[0], len(self))
            shares = shares.scatter(1, top_k_index, top_k_weights.to(hidden_states.dtype))
            for index, expert in enumerate(self):
                result = result + expert(hidden_states) * shares[:, index : index + 1]
            return result
        for index in top_k_index.unique().tolist():
            token, place = torch.where(top_k_index == index)
            found = self[index](hidden_states[token]) * top_k_weights[token, place, None]
            result = result.index_add(0, token, found.to(result.dtype))
        return result


def separate_experts(model: nn.Module) -> None:
    """Give every expert of a model linear layers of its own, in place; nothing happens to a model without experts.

    Args:
        model: of transformers, on any device, also meta. Its matrices become views of its fused tensors.
    """
    layout = EXPERT_LAYOUTS.get(getattr(getattr(model, "config", None), "model_type", ""))
    if layout is None:
        return
    for owner in list(model.modules()):
        block = getattr(owner, _FUSED, None)
        experts = getattr(block, "experts", None)
        if not isinstance(block, nn.Module) or not _is_fused(experts):
            continue
        block.experts = SeparateExperts(_separated(experts, layout))
        if layout.block != _FUSED:
            # The layer goes on to call it by the name that transformers has for it.
            del owner._modules[_FUSED]
            owner.add_module(layout.block, block)
            object.__setattr__(owner, _FUSED, block)


def has_separate_experts(model: nn.Module) -> bool:
    """Whether `separate_experts` found any."""
    return any(isinstance(module, SeparateExperts) for module in model.modules())


def routed_shares(model: nn.Module) -> dict[str, float]:
    """Every matrix of an expert by its path, and the share of the tokens that is routed to it, if to all alike."""
    at_once = getattr(getattr(model, "config", None), "num_experts_per_tok", None)
    return {
        f"{path}.{name}": 1.0 if at_once is None else at_once / len(module)
        for path, module in model.named_modules()
        if isinstance(module, SeparateExperts)
        for name, inner in module.named_modules()
        if hasattr(inner, "in_features")
    }


def _is_fused(experts: Any) -> bool:
    parameters = getattr(experts, "_parameters", {})
    return set(parameters) == {"gate_up_proj", "down_proj"} and all(tensor.ndim == 3 for tensor in parameters.values())


def _separated(experts: Any, layout: ExpertLayout) -> Iterator[Expert]:
    """[experts, 2 inner, hidden], gate above up, and [experts, hidden, inner]."""
    for gate_up, down in zip(experts.gate_up_proj.detach(), experts.down_proj.detach(), strict=True):
        gate, up = gate_up.chunk(2)
        yield Expert(layout, gate, up, down, experts.act_fn)


def _linear(weight: Tensor) -> nn.Linear:
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    return linear
