"""Norms of what enters every linear of the dense model, in one pass: Wanda's half of a score, without pruning."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from shearling.model.layers import find_layers
from train.sparsity.criteria.wanda import ChannelNorm

if TYPE_CHECKING:
    from torch import Tensor, nn


def dense_norms(model: nn.Module, calibration: Sequence[Tensor]) -> dict[str, ChannelNorm]:
    """Module path -> norm of its inputs.

    Args:
        model: dense; one forward of each sample.
        calibration: token ids [tokens] of each sample.
    """
    import torch

    linears = find_layers(model).linears()
    norms = {path: ChannelNorm() for path in linears}
    was_training = model.training
    model.eval()
    with ExitStack() as hooks, torch.no_grad():
        for path, linear in linears.items():
            hooks.enter_context(linear.register_forward_pre_hook(_show_to(norms[path])))
        for sample in calibration:
            model(input_ids=sample[None].to(next(model.parameters()).device), use_cache=False)
    model.train(was_training)
    return norms


def _show_to(norm: ChannelNorm) -> Any:
    def show(_linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.add(inputs[0])

    return show
