"""Every table, in the order of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shearling.registry.executors import EXECUTORS
from shearling.registry.export_formats import EXPORT_FORMATS
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.registry.pruning_methods import PRUNING_METHODS
from shearling.registry.pruning_patterns import PRUNING_PATTERNS
from shearling.registry.registry import Registry
from shearling.registry.runtimes import RUNTIMES
from shearling.registry.search_algorithms import SEARCH_ALGORITHMS

TABLES: Mapping[str, Registry[Any]] = {
    "Pruning methods": PRUNING_METHODS,
    "Pruning patterns": PRUNING_PATTERNS,
    "Search algorithms": SEARCH_ALGORITHMS,
    "Executors": EXECUTORS,
    "Export formats": EXPORT_FORMATS,
    "Number formats": NUMBER_FORMATS,
    "Runtimes": RUNTIMES,
}
"""Heading -> table."""
