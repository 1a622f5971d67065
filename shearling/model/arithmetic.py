"""A model computed in a wider type than its weights are stored in, one module at a time.

Where the weights are views of their files, the whole model computes in float32 while the memory holds that of one
module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def computed_in(model: nn.Module, dtype: torch.dtype, *, without: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Let every module compute in `dtype`; weights that have it already are used as they are.

    Args:
        model: comes back as it was; its weights must not be trained meanwhile.
        dtype: a floating-point type that holds every number of the weights'. A module with the attribute
            `widens_weights` converts its weights to the type of its inputs by itself.
        without: modules that are left alone, with all inside them.
    """
    alone = {inner for module in without for inner in module.modules()}
    with ExitStack() as hooks:
        for module in model.modules():
            if module in alone or getattr(module, "widens_weights", False):
                continue
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


@contextmanager
def copied_in(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Give a module copies of its own of all its weights, to be changed; afterwards it has those from before.

    Args:
        module: with all inside it.
        dtype: of the copies of floating-point weights.
    """
    stored = [(owner, dict(owner._parameters)) for owner in module.modules() if owner._parameters]
    try:
        for owner, parameters in stored:
            for name, parameter in parameters.items():
                if parameter is not None:
                    wanted = dtype if parameter.is_floating_point() else parameter.dtype
                    copy = parameter.detach().to(wanted, copy=True)
                    owner._parameters[name] = nn.Parameter(copy, requires_grad=False)
        yield
    finally:
        for owner, parameters in stored:
            owner._parameters.update(parameters)


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
