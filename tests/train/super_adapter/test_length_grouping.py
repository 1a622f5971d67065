"""Rows of similar length share a batch; every row comes once an epoch, in an order that seed and epoch decide."""

from __future__ import annotations

from train.super_adapter.length_grouping import LengthGroupedSampler

LENGTHS = [(7 * index) % 41 + 3 for index in range(160)]


def padded(order: list[int]) -> int:
    return sum(8 * max(LENGTHS[row] for row in order[start : start + 8]) for start in range(0, len(order), 8))


def test_less_padding_and_every_row_once():
    order = list(LengthGroupedSampler(LENGTHS, batch_size=8, seed=0))
    assert sorted(order) == list(range(len(LENGTHS)))
    assert padded(order) < 0.7 * padded(list(range(len(LENGTHS))))


def test_the_order_follows_seed_and_epoch_alone():
    sampler = LengthGroupedSampler(LENGTHS, batch_size=8, seed=3)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    assert first == again
    assert list(sampler) != first
    assert list(LengthGroupedSampler(LENGTHS, batch_size=8, seed=4)) != first
