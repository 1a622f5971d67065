"""Batches of rows of similar length: padding is computed like text and teaches nothing."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import Sampler

RUN_BATCHES = 50
"""Batches of a run within which rows are sorted, at most; fewer where there would be less than four runs."""


def tell_epochs(loader: Any) -> None:
    """Let accelerate tell the sampler of a loader which epoch begins, in a resumed training of several processes, too.

    It looks for one two levels deep, and there its batches are skipped, shared among the processes and made at a level
    each.
    """
    shared = loader.batch_sampler
    if isinstance(shared, BatchSamplerShard):
        shared.sampler = shared.batch_sampler.sampler


class LengthGroupedSampler(Sampler[int]):
    """Shuffles rows, then sorts each class of them by length within runs of some fifty batches.

    A class keeps the places that it was shuffled into, so a batch has as many rows of it as a batch at random, although
    the length of a row may tell its class. Rows without a class are sorted together, as the Trainer's own sampler does;
    unlike that one this draws from the seed and the epoch alone, so that a resumed run continues in the same order.

    Args:
        lengths: tokens of each row.
        classes: of each row; None where it has none.
        batch_size: rows of a batch.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], classes: Sequence[int | None], *, batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.classes = classes
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        size = self.batch_size * max(1, min(RUN_BATCHES, len(self) // (self.batch_size * 4)))
        runs = [self._sorted_by_class(order[start : start + size]) for start in range(0, len(order), size)]
        return iter(self._longest_first([row for run in runs for row in run]))

    def _sorted_by_class(self, rows: Sequence[int]) -> list[int]:
        queues: dict[Any, deque[int]] = defaultdict(deque)
        for row in sorted(rows, key=lambda row: self.lengths[row], reverse=True):
            queues[self.classes[row]].append(row)
        return [queues[self.classes[row]].popleft() for row in rows]

    def _longest_first(self, order: list[int]) -> list[int]:
        """Change places with the first row of its class, so that memory runs out at once or never."""
        if order:
            longest = max(range(len(order)), key=lambda place: self.lengths[order[place]])
            first = next(place for place, row in enumerate(order) if self.classes[row] == self.classes[order[longest]])
            order[first], order[longest] = order[longest], order[first]
        return order
