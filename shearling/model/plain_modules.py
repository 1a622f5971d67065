"""A model of transformers with the modules that everything here looks into: plain `torch.nn.Linear`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from shearling.model.experts import separate_experts

if TYPE_CHECKING:
    from collections.abc import Set

EQUAL_TO_LINEAR: Set[str] = frozenset({"FalconLinear"})
"""Subclasses that compute what `nn.Linear` does, in other words: Falcon's rounds the product before the bias is added,
where its weights are in half precision."""


def make_plain(model: nn.Module) -> None:
    """Give a model the plain modules that compute the same, in place; nothing happens to what has them already.

    Args:
        model: of transformers, on any device, also meta.
    """
    separate_experts(model)
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module).__name__ in EQUAL_TO_LINEAR:
            module.__class__ = nn.Linear
