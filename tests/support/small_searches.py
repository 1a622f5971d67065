"""Searches of tiny runs that are over in seconds."""

from __future__ import annotations

from search.settings import SearchSettings

SMALL_SEARCH = SearchSettings(
    algorithm="nsga2",
    evaluations=6,
    population=3,
    seed=0,
    limit=8,
    task=None,
    batch_size=8,
    precision="fp32",
    macs_seq_len=16,
)
"""By the size of the adapter; `dataclasses.replace` makes others of it."""
