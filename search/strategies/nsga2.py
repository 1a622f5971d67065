"""NSGA-II (Deb et al., 2002) through pymoo, as LoNAS searches: the whole front of accuracy and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.strategies.evolution import Evolution


class Nsga2(Evolution):
    """See the module."""

    def make_algorithm(self, operators: Mapping[str, Any]) -> Any:
        """Non-dominated sorting, then crowding distance."""
        from pymoo.algorithms.moo.nsga2 import NSGA2

        return NSGA2(**operators)
