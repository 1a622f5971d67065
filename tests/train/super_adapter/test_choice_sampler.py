"""The sampler: uniform, shared within a group, a function of seed and micro-batch alone (invariant 17)."""

import collections

from tests.support.search_spaces import make_space
from train.super_adapter.choice_sampler import RankSampler


def test_every_value_is_drawn_equally_often_in_every_group():
    space, draws = make_space(), 3000
    sampler = RankSampler(space, seed=0)
    counts = collections.Counter((group, rank) for _ in range(draws) for group, rank in sampler.draw().items())
    for group in space.groups:
        expected = draws / len(group.values)
        chi_square = sum((counts[group.id, rank] - expected) ** 2 / expected for rank in group.values)
        assert chi_square < 13.8  # 0.999 quantile for two degrees of freedom


def test_groups_are_independent():
    sampler = RankSampler(make_space(), seed=0)
    pairs = collections.Counter(
        (choice["layers.0.qk"], choice["layers.1.qk"]) for choice in (sampler.draw() for _ in range(3600))
    )
    assert len(pairs) == 9
    assert (
        sum((count - 400) ** 2 / 400 for count in pairs.values()) < 26.1
    )  # 0.999 quantile for eight degrees of freedom


def test_the_counter_is_the_whole_state():
    first = RankSampler(make_space(), seed=7)
    sequence = [first.draw() for _ in range(10)]
    resumed = RankSampler(make_space(), seed=7)
    resumed.drawn = 4
    assert [resumed.draw() for _ in range(6)] == sequence[4:]
    other = RankSampler(make_space(), seed=8)
    assert [other.draw() for _ in range(10)] != sequence


def test_the_sequence_is_fixed_for_good():
    # Written down once: a change here means that old checkpoints resume on other sub-networks.
    sampler = RankSampler(make_space(), seed=0)
    assert [tuple(sampler.draw().values()) for _ in range(3)] == [
        (16, 32, 32, 32, 32, 16),
        (16, 32, 32, 16, 16, 16),
        (16, 32, 16, 16, 24, 32),
    ]


def test_a_shared_draw_takes_the_same_place_in_every_group():
    space, draws = make_space(), 3000
    sampler = RankSampler(space, seed=0, kind="shared")
    drawn = [space.encode(sampler.draw()) for _ in range(draws)]
    sizes = [len(group.values) for group in space.groups]
    for indices in drawn:
        # There is a place in [0, 1) whose index this is in every list.
        least = max(index / size for index, size in zip(indices, sizes, strict=True))
        most = min((index + 1) / size for index, size in zip(indices, sizes, strict=True))
        assert least < most
    longest = sizes.index(max(sizes))
    counts = collections.Counter(indices[longest] for indices in drawn)
    expected = draws / sizes[longest]
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 13.8
    assert {space.encode(space.maximal()), space.encode(space.minimal())} <= set(drawn)


def test_the_largest_comes_first_and_then_what_would_have_been_drawn():
    space = make_space()
    first = RankSampler(space, seed=0, largest_until=5)
    plain = RankSampler(space, seed=0)
    for number in range(12):
        assert first.draw() == (space.maximal() if number < 5 else plain.choice_at(number))
