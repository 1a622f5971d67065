"""A model that computes in float32 and keeps its large frozen weights in the type that they are stored in.

A weight in bfloat16 or float16 is exact in float32, so that widening it for each product gives what a model that was
loaded in float32 computes, bit for bit, in half of the memory and a little more time.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shearling.model.checkpoint import load_model
from shearling.model.head import head_parameters
from shearling.model.skeleton import open_skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_in_stored_types(directory: Path) -> PreTrainedModel:
    """Load a model whose linear layers and embeddings stay in the types of the checkpoint; all else is float32, as is
    the head of a classifier, which is trained.

    Args:
        directory: see `load_model`, which loads in float32 what cannot be loaded tensor by tensor.

    Raises:
        ArtefactError: see `load_model`.
    """
    skeleton = open_skeleton(directory)
    if skeleton is None:
        return load_model(directory)
    model = skeleton.model
    kept = {f"{path}.weight" for path, module in model.named_modules() if type(module) in (nn.Linear, nn.Embedding)}
    kept -= head_parameters(model).keys()
    skeleton.fill(lambda name: name in kept, None)
    skeleton.fill(lambda name: name not in kept, torch.float32)
    model.config.dtype = torch.float32
    compute_in_float32(model)
    return model


def compute_in_float32(model: nn.Module) -> None:
    """Let linear layers and embeddings whose weights are of another type take and give float32."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype is not torch.float32:
            module.forward = partial(_linear, module)  # type: ignore[method-assign] # it stays an nn.Linear for all who look at it
        elif type(module) is nn.Embedding and module.weight.dtype is not torch.float32:
            module.register_forward_hook(_widen)


def frozen_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Give x Wᵀ + b of a frozen weight, in the type of x, or of the autocast where there is one.

    Args:
        x: [..., in].
        weight: [out, in], of any floating-point type.
        bias: [out].
    """
    if weight.dtype is x.dtype or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    product: Tensor = _WidenedProduct.apply(x, weight, bias)
    return product


class _WidenedProduct(torch.autograd.Function):
    """The weight is widened again in the backward, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        grad_y = grad_outputs[0]
        return (grad_y @ weight.to(grad_y.dtype) if ctx.needs_input_grad[0] else None), None, None


def _linear(linear: nn.Linear, x: Tensor) -> Tensor:
    return frozen_product(x, linear.weight, linear.bias)


def _widen(_embedding: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.float()
