"""The 2:4 pattern on NVIDIA's sparse tensor cores, through PyTorch's own kernels (compute capability 8.0, bf16)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shearling.errors import DeviceUnavailable, ModelUnsupported

if TYPE_CHECKING:
    from torch import Tensor, nn

PROPERTY = "SEMI_STRUCTURED"
CAPABILITY = (8, 0)
ROWS, COLUMNS = 32, 64
"""Shapes that the kernels take are multiples of these for 16-bit weights."""


def is_2of4(weight: Tensor) -> bool:
    """Whether at most two of every four neighbours along the input are nonzero, and the kernels take the shape.

    Args:
        weight: [out, in].
    """
    rows, columns = weight.shape
    if rows % ROWS or columns % COLUMNS:
        return False
    return bool((weight.reshape(-1, 4).count_nonzero(dim=1) <= 2).all())


def use_semi_structured(model: nn.Module, *, where: Path) -> int:
    """Replace the weight of every linear layer that has the pattern.

    Args:
        model: on a CUDA device, in bf16; changed in place.
        where: named in errors.

    Returns:
        How many layers now use the sparse kernels.

    Raises:
        DeviceUnavailable: the GPU has no sparse tensor cores, or there is none.
        ModelUnsupported: no layer has the pattern.
    """
    import torch
    from torch import nn
    from torch.sparse import to_sparse_semi_structured

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and is_2of4(layer.weight)]
    if not layers:
        raise ModelUnsupported(
            "no layer has the 2:4 pattern",
            where=where,
            remedy="Prune with: sparsity pattern 2:4 (recipes/smollm2-2of4.toml)",
        )
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < CAPABILITY:
        raise DeviceUnavailable(
            f"{PROPERTY} needs an NVIDIA GPU of compute capability 8.0 or newer",
            where=where,
            remedy="Leave the property out",
        )
    for layer in layers:
        layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
    return len(layers)
