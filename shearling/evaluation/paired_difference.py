"""Two models on the same rows: how much more one gets right, and whether chance explains it.

Rows that both get right or both get wrong say nothing about which is better, so that a comparison row by row sees
smaller differences than one of two accuracies.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from shearling.evaluation.confidence import Z_95

STEPS = 32
"""Of the mean size of a difference, to which graded answers are rounded for their test."""


@dataclass(frozen=True)
class PairedDifference:
    """The accuracy of one model less that of another.

    Attributes:
        n: rows that both answered.
        mean: -1 to 1, positive where the first is better.
        interval: 95 %.
        differences: per row.
    """

    n: int
    mean: float
    interval: tuple[float, float]
    differences: tuple[float, ...]

    @functools.cached_property
    def p_value(self) -> float:
        """Of the exact one-sided test that the first is no better; see `permutation_test`, which may take seconds."""
        return permutation_test(self.differences)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Compare the answers of two models to the same rows.

    Args:
        first: per row how right the answer is, 0 to 1.
        second: the same of the other model, row by row; the rows that only one of them has are left out at the end.
    """
    differences = tuple(left - right for left, right in zip(first, second, strict=False))
    mean = math.fsum(differences) / len(differences) if differences else 0.0
    return PairedDifference(len(differences), mean, paired_interval(differences), differences)


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean difference (Agresti and Min 2005).

        m ± z √((Σd² + 1) / (n + 2) - m²) / √(n + 2),  m = Σd / (n + 2)

    The normal interval after two more rows, half a row for each outcome of the two models: where few rows differ, that
    without them is too short.

    Args:
        differences: per row, -1 to 1.
    """
    n = len(differences) + 2
    centre = math.fsum(differences) / n
    spread = (math.fsum(value * value for value in differences) + 1) / n - centre * centre
    half = Z_95 * math.sqrt(max(0.0, spread) / n)
    return max(-1.0, centre - half), min(1.0, centre + half)


def permutation_test(differences: Sequence[float]) -> float:
    """Exact one-sided p-value of so high a mean where either model may have given each pair of answers (Fisher 1935).

        P(Σ ±|d| ≥ Σd), each sign a fair coin

    Of answers that are right or wrong it is McNemar's test. Graded ones differ by more or less: that counts, so that no
    number of small wins makes up for a lower mean. Their differences are rounded, for sums to be countable.

    Args:
        differences: per row; rows without one say nothing.
    """
    import numpy as np

    told = np.asarray([value for value in differences if value])
    if not told.size:
        return 1.0
    sizes = np.rint(np.abs(told) * (STEPS / np.abs(told).mean())).astype(int)
    sizes //= np.gcd.reduce(sizes)
    # How likely each sum of the differences in favour of the first model is.
    chances = np.zeros(sizes.sum() + 1)
    chances[0] = 1.0
    for size in sizes[sizes > 0]:
        chances[size:] += chances[:-size]
        chances /= 2
    return min(1.0, float(chances[sizes[told > 0].sum() :].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests, in their order (Holm 1979).

    The chance that any of those at or below a level is there by luck is at most that level, however the tests depend on
    each other.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    scaled = [min(1.0, p_values[place] * (len(order) - rank)) for rank, place in enumerate(order)]
    adjusted = [0.0] * len(order)
    for place, value in zip(order, itertools.accumulate(scaled, max), strict=True):
        adjusted[place] = value
    return adjusted
