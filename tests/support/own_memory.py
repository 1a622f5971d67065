"""Weights away from the files that they are views of: what is compared to the last bit must not depend on where a file
lies.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def in_own_memory(model: Model) -> Model:
    """The model, with its weights copied; returned for convenience.

    Views of a file may begin at any address, and how a product of few rows, or one in bfloat16, is summed up depends on
    that. Torch begins what it allocates where vectors like it.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model
