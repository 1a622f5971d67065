"""Whether a model that was cut to size has the size that was promised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shearling.errors import ParityFailed

if TYPE_CHECKING:
    from torch import nn


def check_size(model: nn.Module, expected: int) -> None:
    """Check that a narrowed model has exactly the weights that its description counts.

    Raises:
        ParityFailed: it has not.
    """
    found = sum(parameter.numel() for parameter in model.parameters())
    if found != expected:
        raise ParityFailed(f"the merged model has {found} weights, the sub-network counts {expected}", where="merge")
