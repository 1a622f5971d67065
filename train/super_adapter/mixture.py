"""Several tasks in one training: how often the rows of each are taken, so that their shares are as the weights say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


def mix(tasks: Sequence[Dataset], weights: Sequence[float]) -> Dataset:
    """The rows of all tasks, one behind the other, those of some repeated.

    Args:
        tasks: none empty.
        weights: one for each.
    """
    import datasets

    if len(tasks) == 1:
        return tasks[0]
    counts = mixed_counts([len(task) for task in tasks], weights)
    repeated = [
        task.select(itertools.islice(itertools.cycle(range(len(task))), count))
        for task, count in zip(tasks, counts, strict=True)
    ]
    return datasets.concatenate_datasets(repeated)


def mixed_counts(lengths: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows of each task an epoch has: every one at least once, and no more than the shares need.

    Args:
        lengths: rows of each task.
        weights: their shares, in any unit.

    Returns:
        Counts in the ratio of the weights; the least repeated task comes exactly once.
    """
    unit = max(length / weight for length, weight in zip(lengths, weights, strict=True))
    return [max(length, math.floor(unit * weight + 0.5)) for length, weight in zip(lengths, weights, strict=True)]
