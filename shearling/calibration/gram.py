"""X^T X of what enters a linear layer: all that a layer's squared error depends on, whatever the text was.

With the inputs X [n, in], weights W [out, in] and their replacement V, the error of the layer's outputs is

    ||X Wᵀ - X Vᵀ||² = tr((W - V) H (W - V)ᵀ),    H = XᵀX

so a method that minimises it needs H, which is [in, in] and grows with no text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from shearling.errors import ModelUnsupported, NonFiniteWeights

if TYPE_CHECKING:
    from torch import Tensor

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal (SparseGPT, section 3.4): inputs that hardly vary on the
calibration text stay solvable, and weights on them stay near where they were."""


class Gram:
    """H of one linear layer, in float32.

    Attributes:
        tokens: rows of X seen so far.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._matrix: Tensor | None = None

    def add_product(self, product: Tensor, *, tokens: int) -> None:
        """Add XᵀX [in, in] of a batch of so many tokens."""
        self.tokens += tokens
        self._matrix = product.clone() if self._matrix is None else self._matrix.add_(product)

    def damped(self, *, where: str) -> Tensor:
        """[in, in] float32, H + `DAMPING` mean(diag H) I, positive definite; I where all inputs were zero, to which all
        weights are alike.

        Raises:
            ModelUnsupported: no calibration token reached the layer.
            NonFiniteWeights: an input was NaN or infinite.
        """
        import torch

        if self._matrix is None or not self.tokens:
            raise ModelUnsupported(
                "no calibration token reached this layer", where=where, remedy="Give more samples, or another text"
            )
        if not self._matrix.isfinite().all():
            raise NonFiniteWeights(
                "its calibration inputs hold NaN or infinity", where=where, remedy="Check the base model"
            )
        if not self._matrix.any():
            return torch.eye(len(self._matrix), device=self._matrix.device)
        damped = self._matrix.clone()
        damped.diagonal().add_(DAMPING * damped.diagonal().mean())
        return damped


class LayerGrams:
    """The Gram matrices of the linears of one transformer layer, filled while its inputs are watched.

    Linears that are given the very same tensor, as query, key and value are, cost one product.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._grams = {path: Gram() for path in paths}
        self._last: tuple[Tensor, Tensor] | None = None

    def __getitem__(self, path: str) -> Gram:
        return self._grams[path]

    def watch(self, path: str, inputs: Tensor) -> None:
        """Take in what enters a linear: [batch, tokens, in] or [tokens, in]; in float32 also under an autocast."""
        import torch

        flat = inputs.detach().reshape(-1, inputs.shape[-1])
        if self._last is None or self._last[0] is not inputs:
            rows = flat.float()
            with torch.autocast(rows.device.type, enabled=False):
                self._last = (inputs, rows.T @ rows)
        self._grams[path].add_product(self._last[1], tokens=len(flat))

    def pop(self, path: str) -> Gram:
        """The matrix of one linear, no longer kept here."""
        self._last = None
        return self._grams.pop(path)


def layer_error(weight: Tensor, replacement: Tensor, hessian: Tensor) -> float:
    """tr((W - V) H (W - V)ᵀ) / tr(W H Wᵀ): the squared error of a layer's outputs, as a share of their squares; of a
    layer without any, 0 where it is kept and 1 where it is not.

    Args:
        weight: [out, in].
        replacement: [out, in].
        hessian: [in, in], as of `Gram.damped`.
    """
    difference = (weight - replacement).float()
    whole = weight.float()
    error, outputs = (float(((matrix @ hessian) * matrix).sum()) for matrix in (difference, whole))
    # A layer of zeros has no outputs: nothing is wrong with them, or all.
    return error / outputs if outputs else float(error > 0)
