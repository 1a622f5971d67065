"""What accuracy each group of layers is worth, as far as the evaluations of a search tell.

A linear model of the accuracy, in how small each group was made (0 the largest value, 1 the smallest), fitted by ridge
regression. Its penalty and what it is good for are judged by leaving each candidate out in turn, which has a closed
form (Golub, Heath and Wahba, 1979; Hastie, Tibshirani and Friedman, section 7.10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.strategies.grid import Grid, Indices

LEAST_CANDIDATES = 8
PENALTIES = np.geomspace(1e-2, 1e4, 25)


@dataclass(frozen=True)
class Importance:
    """See the module.

    Attributes:
        losses: of each group, the accuracy that its smallest value loses against its largest one; negative: it gains.
        explained: share of the differences between candidates that the model predicts of those left out; at most 1,
            and no more than 0 where it predicts nothing.
    """

    losses: tuple[float, ...]
    explained: float


def estimate_importance(candidates: Sequence[Indices], accuracies: Sequence[float], grid: Grid) -> Importance | None:
    """Fit the model.

    Args:
        candidates: different ones.
        accuracies: of each, on the same rows.
        grid: of the candidates.

    Returns:
        None where there are too few candidates, or all are equally accurate.
    """
    y = np.asarray(accuracies, dtype=float)
    if len(y) < LEAST_CANDIDATES or np.ptp(y) == 0:
        return None
    # [candidates, groups], 0 to 1; a group with one value says nothing.
    x = np.asarray(candidates, dtype=float) / np.maximum(1, np.asarray(grid.sizes) - 1)
    deviations = y - y.mean()
    left, scale, right = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    projected = left.T @ deviations

    def left_out(penalty: float) -> float:
        """Sum of the squared errors of the candidates that are left out."""
        shrunk = scale**2 / (scale**2 + penalty)
        # The mean is fitted as well, which takes 1 / n of the leverage.
        leverage = left**2 @ shrunk + 1 / len(y)
        errors = (deviations - left @ (shrunk * projected)) / (1 - leverage)
        return float(errors @ errors)

    penalty = min(PENALTIES.tolist(), key=left_out)
    slopes = right.T @ (scale / (scale**2 + penalty) * projected)
    by_mean = deviations * len(y) / (len(y) - 1)
    return Importance(tuple(float(-slope) for slope in slopes), 1 - left_out(penalty) / float(by_mean @ by_mean))
