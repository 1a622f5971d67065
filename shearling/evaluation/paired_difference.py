"""Two models on the same rows: how much more one gets right, and whether chance explains it.

Rows that both get right or both get wrong say nothing about which is better, so that a comparison row by row sees
smaller differences than one of two accuracies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from shearling.evaluation.confidence import Z_95


@dataclass(frozen=True)
class PairedDifference:
    """The accuracy of one model less that of another.

    Attributes:
        n: rows that both answered.
        mean: -1 to 1, positive where the first is better.
        interval: 95 %.
        p_value: of the exact one-sided test that the first is no better; see `sign_test`.
    """

    n: int
    mean: float
    interval: tuple[float, float]
    p_value: float


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Compare the answers of two models to the same rows.

    Args:
        first: per row how right the answer is, 0 to 1.
        second: the same of the other model, row by row; the rows that only one of them has are left out at the end.
    """
    differences = [left - right for left, right in zip(first, second, strict=False)]
    wins, losses = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    mean = math.fsum(differences) / len(differences) if differences else 0.0
    return PairedDifference(len(differences), mean, paired_interval(differences), sign_test(wins, losses))


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean difference (Agresti and Min 2005).

        m ± z √((Σd² + 1) / (n + 2) - m²) / √(n + 2),  m = Σd / (n + 2)

    The normal interval after two more rows, one won and one lost: where few rows differ, that without them is too
    short.

    Args:
        differences: per row, -1 to 1.
    """
    n = len(differences) + 2
    centre = math.fsum(differences) / n
    spread = (math.fsum(value * value for value in differences) + 1) / n - centre * centre
    half = Z_95 * math.sqrt(max(0.0, spread) / n)
    return max(-1.0, centre - half), min(1.0, centre + half)


def sign_test(wins: int, losses: int) -> float:
    """Exact one-sided p-value of at least so many wins where each of wins + losses is a fair coin (McNemar 1947).

    Args:
        wins: rows that the first model alone gets right, or more right.
        losses: rows that the second model does.
    """
    n = wins + losses
    # From one binomial coefficient to the next, in integers: exact, and fast for thousands of rows.
    term = total = math.comb(n, wins)
    for count in range(wins, n):
        term = term * (n - count) // (count + 1)
        total += term
    return total / 2**n


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
