"""The elastic low-rank adapter, in the two forms that decide how it can be merged.

    masked   y = (W + (s B_r A_r) ∘ M) x     one product with the merged weight: merging is bit-exact, every zero stays
    plain    y = W x + s B_r (A_r x)         stock LoRA: exact as a separate adapter, dense when merged

The merged weight of the masked form may be rounded to a grid of integers (`shearling.elastic.weight_grid`); where a
search chooses the format of a layer, that of the plain form is merged and rounded as well.

A_r = A[:r, :], B_r = B[:, :r], s = lora_alpha / r_max for every rank r. The masked form is SparsePEFT (SQFT, section 3)
with the sum taken before the product; the rank is state of the module, never drawn inside the forward, so recomputation
under gradient checkpointing sees the same sub-network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shearling.elastic.frozen_linear import FrozenLinear
from shearling.elastic.mask import pack_mask, unpack_mask
from shearling.elastic.weight_grid import LayerGrid, RoundingGrid
from shearling.errors import NonFiniteWeights, ShapeMismatch
from shearling.model.stored_types import frozen_product
from shearling.quantization.rounding import Rounded


def effective_weight(
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    grid: RoundingGrid | None = None,
) -> Tensor:
    """The weight that a sub-adapter makes of a frozen weight.

        W' = W + (scaling * B @ A) ∘ mask

    Training, search and the merge all call this, in this order of operations, and so agree bit for bit.

    Args:
        weight: [out, in]; not modified.
        lora_a: [rank, in], float32.
        lora_b: [out, rank], float32.
        scaling: lora_alpha / r_max, dimensionless.
        mask: [out, in] bool, True = kept; None leaves the update dense.
        grid: what W' is rounded to, where it is.

    Returns:
        [out, in] float32.

    Raises:
        ShapeMismatch: ranks or widths disagree.
    """
    if lora_b.shape[1] != lora_a.shape[0] or weight.shape != (lora_b.shape[0], lora_a.shape[1]):
        raise ShapeMismatch(
            f"weight {list(weight.shape)}, lora_A {list(lora_a.shape)}, lora_B {list(lora_b.shape)} do not fit together"
        )
    if mask is not None and mask.shape != weight.shape:
        raise ShapeMismatch(f"weight {list(weight.shape)}, mask {list(mask.shape)} do not fit together")
    # Contiguous operands: a matrix product may round differently for another memory layout of the same numbers.
    delta = lora_b.contiguous() @ lora_a.contiguous()
    delta.mul_(scaling)
    if mask is not None:
        delta.mul_(_numeric(mask, delta.dtype))
    delta.add_(weight)
    return delta if grid is None else grid.snap(delta)


def _numeric(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 and 1 for False and True. From int8, which has the same bytes, torch converts eight times faster than from
    bool.
    """
    return mask.view(torch.int8).to(dtype)


class _MaskedLinear(torch.autograd.Function):
    """y = x (W + (s B A) ∘ M)ᵀ + b, differentiated by hand so that W, M and b get no gradient and no copy.

    The bias is added in the product, as a linear layer of the merged weight adds it: added behind, the sum would be
    rounded once more and differ from that layer's.

    Autograd would keep B A, its masked product and the sum, each as large as W; here the sum alone is kept, for dL/dx,
    or made again where memory is short, from what is there anyway.

    With G = (dL/dyᵀ x) ∘ M:  dL/dB = s G Aᵀ,  dL/dA = s Bᵀ G,  dL/dx = dL/dy (W + (s B A) ∘ M).

    On a grid the sum is rounded first, and its gradient is taken for that of the sum: straight through.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        mask: Tensor,
        update: _Update,
    ) -> Tensor:
        ctx.update = update
        # The sum is taken in float32 and rounded once: in bfloat16 a small update would vanish beside a large weight.
        merged = update.merge(weight, lora_a, lora_b, mask).to(x.dtype)
        ctx.save_for_backward(x, weight if update.remerges else merged, lora_a, lora_b, mask)
        return F.linear(x, merged, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_y, update = grad_outputs[0], ctx.update
        x, weight, lora_a, lora_b, mask = ctx.saved_tensors
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            merged = update.merge(weight, lora_a, lora_b, mask).to(x.dtype) if update.remerges else weight
            grad_x = grad_y @ merged
            del merged
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
            # [out, in], the gradient of the merged weight. It is summed over all rows before the mask is applied: the
            # mask stands between B A and the weight, so the gradients of A and B have no path that avoids [out, in].
            grad_weight = grad_y.reshape(-1, grad_y.shape[-1]).T @ x.reshape(-1, x.shape[-1])
            grad_weight.mul_(_numeric(update.mask(mask, weight.shape), grad_weight.dtype))
            grad_a = (lora_b.to(x.dtype).T @ grad_weight).to(lora_a.dtype).mul_(update.scaling)
            grad_b = (grad_weight @ lora_a.to(x.dtype).T).to(lora_b.dtype).mul_(update.scaling)
        return grad_x, None, None, grad_a, grad_b, None, None


class _Update(NamedTuple):
    """How an update is merged, now and in the backward.

    Attributes:
        packed_shape: [out, in] of the whole mask, where it is given as bits.
        remerges: the merged weight is not kept for the backward, but made again.
    """

    scaling: float
    grid: RoundingGrid | None
    packed_shape: tuple[int, ...] | None
    remerges: bool

    def mask(self, mask: Tensor, shape: Sequence[int]) -> Tensor:
        """[out, in] bool of the active part."""
        if self.packed_shape is None:
            return mask
        return unpack_mask(mask, self.packed_shape)[: shape[0], : shape[1]]

    def merge(self, weight: Tensor, lora_a: Tensor, lora_b: Tensor, mask: Tensor) -> Tensor:
        """See `effective_weight`."""
        active = self.mask(mask, weight.shape)
        return effective_weight(weight, lora_a, lora_b, scaling=self.scaling, mask=active, grid=self.grid)


class ActiveParts(NamedTuple):
    """The tensors of an adapted linear layer that the active sub-network uses."""

    weight: Tensor
    bias: Tensor | None
    lora_a: Tensor
    lora_b: Tensor
    mask: Tensor | None


class ElasticLoraLinear(FrozenLinear):
    """A frozen linear layer with an adapter whose rank can be cut to a prefix, and whose own sides can be.

    Args:
        base: the frozen linear layer; its parameters are shared, not copied, and stop requiring gradients.
        r_max: rank of the stored factors.
        scaling: lora_alpha / r_max.
        scales_by_rank: the scaling of a smaller rank is lora_alpha / rank instead.
        mask: [out, in] bool for the masked form; None for the plain form.
        grid: of the merged weight, in the masked form; its layers have whole sides.
        dropout: on the adapter's input while training, plain form only.
        generator: draws the initial A; B starts at zero, so that every rank starts as the base.
        lean: less memory for more time, and the same numbers: the mask is held as bits, and no merged weight is kept,
            neither for the backward nor while a sub-network is evaluated.

    Attributes:
        adapts: false leaves the adapter out: the layer is the frozen one, at its active sides.

    Raises:
        ShapeMismatch: the mask does not fit the weight.
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        r_max: int,
        scaling: float,
        mask: Tensor | None,
        grid: LayerGrid | None = None,
        scales_by_rank: bool = False,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        lean: bool = False,
    ) -> None:
        super().__init__(base)
        if mask is not None and mask.shape != base.weight.shape:
            raise ShapeMismatch(f"weight {list(base.weight.shape)}, mask {list(mask.shape)} do not fit together")
        self.r_max = r_max
        self.rank = r_max
        self.scaling = scaling
        self._largest_scaling, self._scales_by_rank = scaling, scales_by_rank
        self.dropout = nn.Dropout(dropout)
        self.lean = lean
        self.adapts = True
        self._mask: Tensor | None
        packed = None if mask is None or not lean else pack_mask(mask).to(mask.device)
        self.register_buffer("_mask", mask if packed is None else packed, persistent=False)
        self.grid_scales: Tensor | None
        self.register_buffer("grid_scales", None if grid is None else grid.scales, persistent=False)
        self._grid_bits = 0 if grid is None else grid.bits
        self.lora_a = nn.Parameter(torch.empty(r_max, base.in_features, device=base.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, r_max, device=base.weight.device))
        # kaiming_uniform with a = sqrt(5), as PEFT initialises
        bound = 1 / math.sqrt(base.in_features)
        nn.init.uniform_(self.lora_a, -bound, bound, generator=generator)

    @property
    def mask(self) -> Tensor | None:
        """[out, in] bool, whole; None in the plain form."""
        return self._mask if self._mask is None or not self.lean else unpack_mask(self._mask, self.weight.shape)

    @property
    def grid(self) -> RoundingGrid | None:
        """See the class; where a search chooses the format of the layer, it is that of the weight in use."""
        if self.rounding is not None:
            return self.rounding
        return None if self.grid_scales is None else LayerGrid(self.grid_scales, self._grid_bits)

    def forget(self) -> None:
        """See `FrozenLinear.forget`; the mask and the grid go with the weight, the factors stay."""
        super().forget()
        self._mask = self.grid_scales = None

    def take(self, weight: Tensor, *, percent: int, mask: Tensor | None) -> None:
        """See `FrozenLinear.take`; the update is multiplied by the mask of the weight, in the masked form."""
        super().take(weight, percent=percent, mask=mask)
        if self._mask is not None and mask is not None:
            device = self._mask.device
            self._mask = pack_mask(mask).to(device) if self.lean else mask.to(device)

    def activate(self, rank: int) -> None:
        """Use the first `rank` rows of A and columns of B from now on.

        Raises:
            ShapeMismatch: not in 1..r_max.
        """
        if not 1 <= rank <= self.r_max:
            raise ShapeMismatch(f"rank {rank} is outside 1..{self.r_max}")
        self.rank = rank
        if self._scales_by_rank:
            self.scaling = self._largest_scaling * self.r_max / rank
        self._held = None

    def active_parts(self) -> ActiveParts:
        """Weight, bias, factors and mask of the active sub-network, as views."""
        mask = self.mask
        weight, bias, lora_a, lora_b = self._unmasked_parts()
        return ActiveParts(
            weight, bias, lora_a, lora_b, None if mask is None else mask[: self.active_out, : self.active_in]
        )

    def _unmasked_parts(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        out, width = self.active_out, self.active_in
        return (
            self.weight[:out, :width],
            None if self.bias is None else self.bias[:out],
            self.lora_a[: self.rank, :width],
            self.lora_b[:out, : self.rank],
        )

    def merged_weight(self) -> Tensor:
        """[out, in] float32, the weight of the active sub-adapter; masked in the masked form, and on its grid.

        Raises:
            NonFiniteWeights: the adapter holds NaN or infinity.
        """
        return self._merged(self.grid)

    def integers(self) -> Rounded | None:
        """What the merged weight is rounded to, where a search chose the format of the layer; else None.

        Raises:
            NonFiniteWeights: the adapter holds NaN or infinity.
        """
        return None if self.rounding is None else self.rounding.round(self._merged(None))

    def _merged(self, grid: RoundingGrid | None) -> Tensor:
        parts = self.active_parts()
        # The same weight wherever it is asked for: autocast would round A and B before their product.
        with torch.no_grad(), torch.autocast(parts.weight.device.type, enabled=False):
            merged = effective_weight(
                parts.weight, parts.lora_a, parts.lora_b, scaling=self.scaling, mask=parts.mask, grid=grid
            )
        if not torch.isfinite(merged).all():
            raise NonFiniteWeights("the merged weight holds NaN or infinity")
        return merged

    def hold_merged(self, *, hold: bool) -> None:
        """Compute the merged weight once and use it until the rank changes (evaluation of one sub-network); a lean
        layer makes it each time.
        """
        holds = hold and (self._mask is not None or self.rounding is not None) and not self.lean
        self._held = self.merged_weight().to(self.weight.dtype) if holds else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the active sub-adapter.

        Args:
            x: [..., in].

        Returns:
            [..., out].
        """
        weight, bias, lora_a, lora_b = self._unmasked_parts()
        if not self.adapts:
            return frozen_product(x, weight, bias)
        if self._held is not None:
            return F.linear(x, self._held, bias)
        if self._mask is None and self.rounding is not None:
            return F.linear(x, self.merged_weight().to(x.dtype), bias)
        if self._mask is None:
            update = F.linear(F.linear(self.dropout(x), lora_a), lora_b)
            return frozen_product(x, weight, bias) + update * self.scaling
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        mask = self._mask if self.lean else self._mask[: self.active_out, : self.active_in]
        merging = _Update(self.scaling, self.grid, tuple(self.weight.shape) if self.lean else None, self.lean)
        # Autocast would round A and B before their product; here only the finished weight is rounded.
        with torch.autocast(device, enabled=False):
            y: Tensor = _MaskedLinear.apply(x, weight, bias, lora_a, lora_b, mask, merging)
            return y

    def extra_repr(self) -> str:
        """Shapes and state for `print(model)`."""
        form = "plain" if self._mask is None else "masked"
        sizes = f"in_features={self.active_in}/{self.in_features}, out_features={self.active_out}/{self.out_features}"
        return f"{sizes}, rank={self.rank}/{self.r_max}, {form}"
