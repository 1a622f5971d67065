"""A model computed in a wider type than its weights are stored in, one module at a time.

Where the weights are views of their files, the whole model computes in float32 while the memory holds that of one
module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def computed_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let every module compute in `dtype`; weights that have it already are used as they are.

    Args:
        model: comes back as it was; its weights must not be trained meanwhile.
        dtype: a floating-point type that holds every number of the weights'.
    """
    with ExitStack() as hooks:
        for module in model.modules():
            stored = {
                name: parameter
                for name, parameter in module.named_parameters(recurse=False)
                if parameter.is_floating_point() and parameter.dtype != dtype
            }
            if not stored:
                continue
            if type(module) is nn.Embedding:
                # The rows that are looked up need to be converted, not the vocabulary.
                hooks.enter_context(module.register_forward_hook(_converter(dtype)))
                continue
            hooks.enter_context(module.register_forward_pre_hook(_filler(stored, dtype)))
            hooks.enter_context(module.register_forward_hook(_restorer(stored), always_call=True))
        yield


def _converter(dtype: torch.dtype) -> Callable[..., Tensor]:
    def convert(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output.to(dtype)

    return convert


def _filler(stored: dict[str, nn.Parameter], dtype: torch.dtype) -> Callable[..., None]:
    def fill(module: nn.Module, _inputs: Any) -> None:
        for name, parameter in stored.items():
            module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)

    return fill


def _restorer(stored: dict[str, nn.Parameter]) -> Callable[..., None]:
    def restore(module: nn.Module, _inputs: Any, _output: Any) -> None:
        module._parameters.update(stored)

    return restore
