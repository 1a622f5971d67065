"""A model whose large weights are zeros that take no memory, for converters that run a model to learn its graph.

What a converter makes of it is the graph alone. The weights are put into it afterwards, each from where it lies: so no
converter has to hold them, whatever their type is, and the graph is that of a model in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

LEAST_BYTES = 4096
"""Of a weight that is left out, in float32; smaller ones go with the graph, since converters fold them into others."""

Weights = Mapping[str, Tensor]
"""Name in the model -> the weight that is left out; a tied one under each of its names."""


@contextmanager
def hollow(model: nn.Module) -> Iterator[Weights]:
    """Leave the weights of linear layers and embeddings out, and give all others in float32.

    Args:
        model: comes back as it was.
    """
    left_out: dict[str, Tensor] = {}
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    stand_ins: dict[int, nn.Parameter] = {}
    try:
        for path, module in model.named_modules():
            for leaf, parameter in module._parameters.items():
                if parameter is None:
                    continue
                replaced.append((module, leaf, parameter))
                empty = _is_left_out(module, leaf, parameter)
                if empty:
                    left_out[f"{path}.{leaf}"] = parameter.detach()
                if id(parameter) not in stand_ins:
                    stand_ins[id(parameter)] = _stand_in(parameter, empty=empty, number=len(stand_ins) + 1)
                module._parameters[leaf] = stand_ins[id(parameter)]
        yield left_out
    finally:
        for module, leaf, parameter in replaced:
            module._parameters[leaf] = parameter


def as_float32(weight: Tensor) -> npt.NDArray[np.float32]:
    """A weight for a graph in float32: as it lies, or converted."""
    array: npt.NDArray[np.float32] = weight.detach().float().contiguous().numpy()
    return array


def _is_left_out(module: nn.Module, leaf: str, parameter: nn.Parameter) -> bool:
    return leaf == "weight" and isinstance(module, nn.Linear | nn.Embedding) and parameter.numel() * 4 >= LEAST_BYTES


def _stand_in(parameter: nn.Parameter, *, empty: bool, number: int) -> nn.Parameter:
    if not empty:
        return nn.Parameter(parameter.detach().float(), requires_grad=False)
    # Pages that are read and never written are one page of zeros of the system.
    zeros = np.zeros(tuple(parameter.shape), np.float32)
    # A converter makes one of constants that are equal.
    zeros.flat[0] = number
    return nn.Parameter(torch.from_numpy(zeros), requires_grad=False)
