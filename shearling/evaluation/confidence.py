"""How far an accuracy over few rows may be from the truth."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson_interval(share: float, n: int, *, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a binomial share (Wilson 1927).

        (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    Args:
        share: observed, 0 to 1.
        n: trials; 0 gives (0, 1).
        z: normal quantile.
    """
    if n == 0:
        return 0.0, 1.0
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def accuracies_differ(first: float, second: float, n: int) -> bool:
    """Whether two accuracies over n rows each differ beyond the 95 % interval of their difference.

        |p - q| > z √((p(1-p) + q(1-q)) / n)

    Where the rows are the same this errs on the careful side: a paired comparison would see smaller differences.
    """
    error = math.sqrt((first * (1 - first) + second * (1 - second)) / n)
    return abs(first - second) > Z_95 * error
