"""Rows of similar length share a batch; every row comes once an epoch, in an order that seed and epoch decide."""

from __future__ import annotations

import random
import statistics

import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from train.super_adapter.length_grouping import LengthGroupedSampler, tell_epochs

LENGTHS = [(7 * index) % 41 + 3 for index in range(160)]
BATCH = 8


def sampler_of(lengths, classes=None, *, seed=0):
    return LengthGroupedSampler(lengths, classes or [None] * len(lengths), batch_size=BATCH, seed=seed)


def batches(order):
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def padded(order, lengths):
    return sum(BATCH * max(lengths[row] for row in batch) for batch in batches(order))


def share_deviation(order, classes):
    return statistics.pstdev(statistics.mean(classes[row] for row in batch) for batch in batches(order))


@pytest.mark.parametrize(("classes", "share"), [(None, 0.7), ([index % 3 for index in range(160)], 0.75)])
def test_less_padding_and_every_row_once(classes, share):
    order = list(sampler_of(LENGTHS, classes, seed=0))
    assert sorted(order) == list(range(len(LENGTHS)))
    assert padded(order, LENGTHS) < share * padded(list(range(len(LENGTHS))), LENGTHS)


def test_a_batch_has_as_many_rows_of_a_class_as_one_at_random():
    # Long rows are of class 1 more often, as they are in the demo's headlines.
    draw = random.Random(0)
    lengths = [draw.randint(10, 60) for _ in range(8000)]
    classes = [int(draw.random() < length / 70) for length in lengths]
    order = list(sampler_of(lengths, classes, seed=0))
    shuffled = draw.sample(range(8000), 8000)
    at_random = share_deviation(shuffled, classes)
    assert share_deviation(order, classes) == pytest.approx(at_random, rel=0.06)
    assert padded(order, lengths) < 0.8 * padded(shuffled, lengths)
    by_length_alone = list(sampler_of(lengths, seed=0))
    assert share_deviation(by_length_alone, classes) > 1.2 * at_random


def test_the_longest_row_comes_in_the_first_batch():
    lengths = [*LENGTHS, 99]
    order = list(sampler_of(lengths, [index % 2 for index in range(161)], seed=1))
    assert 160 in order[:BATCH]


def test_the_order_follows_seed_and_epoch_alone():
    sampler = sampler_of(LENGTHS, seed=3)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    assert first == again
    assert list(sampler) != first
    assert list(sampler_of(LENGTHS, seed=4)) != first


@pytest.mark.parametrize("processes", [1, 2])
def test_an_epoch_that_is_resumed_has_the_rows_it_had(processes):
    """In this order the Trainer skips what was learnt and says which epoch it is."""

    def loader():
        made = DataLoader(LENGTHS, batch_size=BATCH, sampler=sampler_of(LENGTHS, seed=3))
        shared = prepare_data_loader(made, num_processes=processes, process_index=0, put_on_device=False)
        tell_epochs(shared)
        return shared

    def rows(made):
        made.set_epoch(1)
        return [batch.tolist() for batch in made]

    whole, again = rows(loader()), rows(skip_first_batches(loader(), 2))
    assert len(whole) == len(LENGTHS) // BATCH // processes
    assert again == whole[2:]
    first = loader()
    assert [batch.tolist() for batch in first] != whole
