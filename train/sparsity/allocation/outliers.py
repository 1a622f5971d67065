"""How the zeros are shared out among the layers (OWL, Yin et al., 2023, arXiv 2310.05175).

A layer whose weights hold more outliers, scores far above the mean of their matrix, is hurt more and keeps more. With
the Wanda scores A_ij = |W_ij| sqrt(c_j) of the dense model,

    D = share of a layer's weights with A_ij > M mean(A)           M = 5
    S = ratio + λ (mean(D') - D'),  D' = 2 D / max(D) scaled into [-1, 1]      λ = 0.08

so that the mean over equal layers is the ratio that was asked for, and none is further from it than λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shearling.calibration.propagation import IN_MEMORY, Residence
from shearling.errors import RecipeInvalid
from shearling.model.layers import find_layers
from train.sparsity.allocation.dense_norms import dense_norms
from train.sparsity.criteria.wanda import wanda_scores

if TYPE_CHECKING:
    from torch import Tensor, nn

OUTLIER_TIMES = 5.0
SPREAD = 0.08


def outlier_ratios(
    model: nn.Module, calibration: Sequence[Tensor], ratio: float, *, residence: Residence = IN_MEMORY
) -> tuple[float, ...]:
    """Share of zeros of each layer.

    Args:
        model: dense; one forward of each sample.
        calibration: token ids [tokens] of each sample.
        ratio: the mean over all layers, 0 to 1.
        residence: brings layers into memory, where the model is not there as a whole.

    Raises:
        RecipeInvalid: a layer would keep everything or nothing.
    """
    spread = spread_ratios(outlier_shares(model, calibration, residence=residence), ratio)
    for index, share in enumerate(spread):
        if not 0 <= share < 1:
            raise RecipeInvalid(
                f"layer {index} would have {share:.1%} zeros, to reach {ratio:.1%} on average",
                where="sparsity.ratio",
                remedy=f'Give a ratio from {SPREAD:g} to {1 - SPREAD:g}, or set allocation = "uniform"',
            )
    return spread


def spread_ratios(outliers: Sequence[float], ratio: float) -> tuple[float, ...]:
    """The formula of the module: the more outliers, the fewer zeros.

    Args:
        outliers: D of each layer.
        ratio: the mean of what is returned.
    """
    low, high = min(outliers), max(outliers)
    if high == low:
        return (ratio,) * len(outliers)
    scaled = [2 * SPREAD * (share - low) / (high - low) for share in outliers]
    mean = sum(scaled) / len(scaled)
    return tuple(ratio + mean - share for share in scaled)


def outlier_shares(
    model: nn.Module, calibration: Sequence[Tensor], *, residence: Residence = IN_MEMORY
) -> tuple[float, ...]:
    """Share of each layer's weights whose score is an outlier of its matrix."""
    transformer = find_layers(model)
    norms = dense_norms(model, calibration, residence=residence)
    shares = []
    for index in range(len(transformer.layers)):
        outliers = weights = 0
        with residence.layer(index):
            for path, linear in transformer.linears_of(index).items():
                if norms[path].mean_square is None and transformer.is_routed(path):
                    # An expert of which the text tells nothing.
                    continue
                scores = wanda_scores(linear.weight, norms[path], where=path)
                outliers += int((scores > OUTLIER_TIMES * scores.mean()).sum())
                weights += scores.numel()
        shares.append(outliers / weights)
    return tuple(shares)
