"""R-NSGA-II (Deb and Sundar, 2006) through pymoo: the part of the front next to a reference point.

The reference point is no cost and no error, distances are measured in the spans of the front, and of candidates nearer
to each other than `EPSILON` one is kept: the settings of BootstrapNAS, with which LoNAS and Shears search. There the
second objective is the negative accuracy, so that its point [0, 0] stands for no accuracy at all, and draws the search
towards cheap candidates of little accuracy; with the error in its place, the point is the one that is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search.strategies.evolution import Evolution
from search.strategies.strategy import Trial

REFERENCE_POINT = (0.0, 0.0)
"""Cost and error that the search aspires to."""

EPSILON = 0.001


class Rnsga2(Evolution):
    """See the module."""

    def make_algorithm(self, operators: Mapping[str, Any]) -> Any:
        """Non-dominated sorting, then nearness to the reference point."""
        import numpy as np
        from pymoo.algorithms.moo.rnsga2 import RNSGA2

        return RNSGA2(
            ref_points=np.array([REFERENCE_POINT]),
            epsilon=EPSILON,
            normalization="front",
            extreme_points_as_reference_points=False,
            **operators,
        )

    def tell(self, trials: Sequence[Trial]) -> None:
        """Select the survivors."""
        import numpy as np

        # A front of equal outcomes has no span; all of it is infinitely far away then, and any of it may survive.
        with np.errstate(divide="ignore", invalid="ignore"):
            super().tell(trials)
