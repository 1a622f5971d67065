"""Several tasks in one training: their shares are those of the weights, and no row is left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.super_adapter.mixture import mix, mixed_counts

LENGTHS = st.lists(st.integers(1, 400), min_size=2, max_size=4)


@given(LENGTHS, st.data())
def test_shares_follow_the_weights_and_every_row_is_seen(lengths, data):
    weights = data.draw(st.lists(st.floats(0.2, 5), min_size=len(lengths), max_size=len(lengths)))
    counts = mixed_counts(lengths, weights)
    assert all(count >= length for count, length in zip(counts, lengths, strict=True))
    assert any(count == length for count, length in zip(counts, lengths, strict=True))
    unit = max(length / weight for length, weight in zip(lengths, weights, strict=True))
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - unit * weight) <= 1


def test_the_smaller_task_is_repeated():
    import datasets

    tasks = [
        datasets.Dataset.from_dict({"row": list(range(start, start + count))}) for start, count in ((0, 6), (10, 2))
    ]
    assert mix(tasks, [3, 2])["row"][:] == [0, 1, 2, 3, 4, 5, 10, 11, 10, 11]
    assert mix(tasks, [1, 1])["row"][:] == [0, 1, 2, 3, 4, 5, *[10, 11] * 3]
    assert mix(tasks[:1], [0.5]) is tasks[0]


@pytest.mark.parametrize(("weights", "expected"), [([1, 1], [9, 9]), ([9, 3], [9, 3]), ([1, 2], [9, 18])])
def test_weights_are_shares_of_rows(weights, expected):
    assert mixed_counts([9, 3], weights) == expected
