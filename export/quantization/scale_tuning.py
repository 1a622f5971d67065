"""The scales of all matrices, tuned together until the rounded model predicts what the one in float32 does.

The integers stay. A scale is few numbers for many weights, so there is little to overfit, and what is trained is what
is stored: the second phase of EfficientQAT (Chen et al., 2024, arXiv 2407.11062) with a teacher in the place of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from export.quantization.settings import TUNING_BATCH
from shearling.calibration.distillation import TunedParameter, distil
from shearling.quantization.rounding import Rounded, in_bytes, storable

LEARNING_RATE = 2e-3
"""Of a factor on each scale, which starts at one."""


class _Scaled(torch.autograd.Function):
    """codes * scales, of which only the codes, in a byte each, wait for the backward."""

    @staticmethod
    def forward(ctx: Any, scales: Tensor, codes: Tensor) -> Tensor:
        ctx.codes = codes
        return (codes * scales[:, :, None]).reshape(codes.shape[0], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return (gradients[0].reshape(ctx.codes.shape) * ctx.codes).sum(dim=2), None


class TunedGrid(nn.Module):
    """A weight, codes * (factors * scales).

    Args:
        rounded: what it starts from.
    """

    def __init__(self, rounded: Rounded) -> None:
        super().__init__()
        groups = rounded.scales.shape
        self._codes = rounded.codes.to(torch.int8).reshape(*groups, rounded.group_size)
        self._scales = rounded.scales
        self.factors = nn.Parameter(torch.ones(groups, device=rounded.scales.device))

    @property
    def scales(self) -> Tensor:
        """[out, groups], as tuned."""
        return self._scales * self.factors

    def forward(self) -> Tensor:
        """[out, in] float32."""
        weight: Tensor = _Scaled.apply(self.scales, self._codes)
        return weight


class GridModule(nn.Module):
    """A module that computes what it did, with the weight of a grid.

    Args:
        module: a linear or an embedding.
        grid: its weight; several modules may share it.
    """

    def __init__(self, module: nn.Module, grid: TunedGrid) -> None:
        super().__init__()
        self.module = module
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """See the module."""
        result: Tensor = functional_call(self.module, {"weight": self.grid()}, (x,))
        return result


def tune_scales(
    student: nn.Module,
    teacher: nn.Module,
    rounded: Mapping[str, Rounded],
    windows: Sequence[Tensor],
    *,
    classifier: bool,
    bf16: bool,
) -> list[float]:
    """Tune the scales of `rounded`, in place.

    Args:
        student: the teacher's copy, whose modules at these paths are rounded; used up.
        teacher: float32.
        rounded: module path -> its weight.
        windows: token ids [tokens], all of one length, `TUNING_BATCH` a step; none tunes nothing.
        classifier: see `distil`.
        bf16: see `distil`.

    Returns:
        The distance at each step.
    """
    if len(windows) < TUNING_BATCH:
        return []
    # By identity: an embedding and a head that are one matrix are tuned as one.
    grids = {id(result): TunedGrid(result) for result in rounded.values()}
    for path, result in rounded.items():
        student.set_submodule(path, GridModule(student.get_submodule(path), grids[id(result)]))
    distances = distil(
        student,
        teacher,
        [TunedParameter(grid.factors, LEARNING_RATE) for grid in grids.values()],
        windows,
        batch_size=TUNING_BATCH,
        classifier=classifier,
        bf16=bf16,
        title="tuning the scales",
        where="--quantization best",
        remedy="Use --quantization balanced",
    )
    for result in rounded.values():
        result.scales = in_bytes(storable(grids[id(result)].scales.detach(), otherwise=result.scales))
    return distances
