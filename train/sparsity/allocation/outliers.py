"""How the zeros are shared out among the layers (OWL, Yin et al., 2023, arXiv 2310.05175).

A layer whose weights hold more outliers, scores far above the mean of their matrix, is hurt more and keeps more. With
the Wanda scores A_ij = |W_ij| sqrt(c_j) of the dense model,

    D = share of a layer's weights with A_ij > M mean(A)           M = 5
    S = ratio + λ (mean(D') - D'),  D' = 2 D / max(D) scaled into [-1, 1]      λ = 0.08

so that the mean over equal layers is the ratio that was asked for. Of L layers the furthest from it is one that alone
has outliers, or alone has none, by 2 λ (1 - 1/L). No layer can have fewer zeros than none, or keep nothing: near either
end the shares of those that would are clipped, and the others move together until the mean is the ratio again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shearling.calibration.propagation import IN_MEMORY, Residence
from shearling.model.layers import find_layers
from train.sparsity.allocation.dense_norms import dense_norms
from train.sparsity.criteria.wanda import wanda_scores

if TYPE_CHECKING:
    from torch import Tensor, nn

OUTLIER_TIMES = 5.0
SPREAD = 0.08
MOST_ZEROS = 0.99
"""Of a layer that would keep nothing."""


def outlier_ratios(
    model: nn.Module, calibration: Sequence[Tensor], ratio: float, *, residence: Residence = IN_MEMORY
) -> tuple[float, ...]:
    """Share of zeros of each layer.

    Args:
        model: dense; one forward of each sample.
        calibration: token ids [tokens] of each sample.
        ratio: the mean over all layers, 0 to 1.
        residence: brings layers into memory, where the model is not there as a whole.
    """
    return spread_ratios(outlier_shares(model, calibration, residence=residence), ratio)


def spread_ratios(outliers: Sequence[float], ratio: float) -> tuple[float, ...]:
    """The formula of the module: the more outliers, the fewer zeros.

    Args:
        outliers: D of each layer.
        ratio: the mean of what is returned, 0 to 1.

    Returns:
        Shares of zeros, from 0 to less than 1.
    """
    low, high = min(outliers), max(outliers)
    if high == low:
        return (ratio,) * len(outliers)
    scaled = [2 * SPREAD * (share - low) / (high - low) for share in outliers]
    mean = sum(scaled) / len(scaled)
    spread = tuple(ratio + mean - share for share in scaled)
    return spread if all(0 <= share < 1 for share in spread) else _clipped(spread, ratio)


def _clipped(shares: Sequence[float], ratio: float) -> tuple[float, ...]:
    """Shares from 0 to `MOST_ZEROS`, or to the ratio where that is more, whose mean is the ratio; those in between keep
    their distances.
    """
    found, most = list(shares), max(MOST_ZEROS, ratio)
    # Each pass clips another layer, or is the last.
    for _ in shares:
        found = [min(max(share, 0.0), most) for share in found]
        rest = ratio * len(found) - sum(found)
        free = [index for index, share in enumerate(found) if (share < most if rest > 0 else share > 0)]
        for index in free:
            found[index] += rest / len(free)
    return tuple(min(max(share, 0.0), most) for share in found)


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
