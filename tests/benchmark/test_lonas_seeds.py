"""Which candidate of a search the benchmark tells of."""

from __future__ import annotations

import pytest

from search.journal import Record
from tests.benchmark.lonas_seeds import most_accurate


def record(number: int, accuracy: float, macs_m: float) -> Record:
    return Record(
        i=number, id=str(number), parent=None, algorithm="nsga2", generation=0, seed=0, choice_idx=(number,), accuracy=accuracy,
        accuracy_stderr=None, loss=None, n_eval=9, eval_split_sha256="", macs_m=macs_m, adapter_params=1, nonzero_params=1, cost_kind="macs",
        seconds=0.0, cached=False, pareto=True,
    )  # fmt: skip


def test_the_most_accurate_within_the_share_is_told_of() -> None:
    records = [record(0, 0.9, 100), record(1, 0.8, 75), record(2, 0.8, 60), record(3, 0.7, 50)]
    assert most_accurate(records, 0.75).i == 2
    assert most_accurate(records, 1.0).i == 0
    with pytest.raises(ValueError, match="empty"):
        most_accurate(records, 0.4)
