"""The sampler: uniform, shared within a group, a function of seed and micro-batch alone (invariant 17)."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shearling.elastic.search_space import WidthTemplate
from shearling.recipe.training import TrainSection
from tests.support.search_spaces import make_space
from train.super_adapter.artefact import draw_by_recipe
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


def test_with_progressive_shrinking_the_lists_open_one_value_after_the_other():
    space = make_space()
    sampler = RankSampler(space, seed=0, kind="shared", largest_until=10, shrinks_until=50)
    plain = RankSampler(space, seed=0, kind="shared")
    drawn = [sampler.draw() for _ in range(60)]
    assert all(choice == space.maximal() for choice in drawn[:10])
    # Of three values two are drawn for half of what is left, of two both.
    assert {choice["layers.0.qk"] for choice in drawn[10:30]} == {32, 24}
    assert {choice["layers.0.up"] for choice in drawn[10:30]} == {32, 16}
    assert drawn[30:] == [plain.choice_at(number) for number in range(30, 60)]
    assert {choice["layers.0.qk"] for choice in drawn[30:]} == {32, 24, 16}
    smallest = [sampler.smallest_at(number) for number in (9, 10, 29, 30, 1000)]
    assert smallest[0] == space.maximal()
    assert [choice["layers.0.qk"] for choice in smallest[1:]] == [24, 24, 16, 16]
    assert smallest[1]["layers.0.up"] == 16
    assert smallest[3] == space.minimal()


@given(
    largest_until=st.integers(0, 40),
    more=st.integers(1, 60),
    values=st.lists(st.integers(1, 31), min_size=1, max_size=6, unique=True),
    kind=st.sampled_from(("shared", "independent")),
)
def test_progressive_shrinking_never_takes_back_what_it_has_opened(largest_until, more, values, kind):
    lists = (32, *sorted(values, reverse=True))
    space, until = make_space(values=lists), largest_until + more
    sampler = RankSampler(space, seed=1, kind=kind, largest_until=largest_until, shrinks_until=until)
    smallest = [lists.index(sampler.smallest_at(number)["layers.1.qk"]) for number in range(until)]
    assert smallest == sorted(smallest)
    assert smallest[:largest_until] == [0] * largest_until
    assert smallest[largest_until] == 1
    counts = collections.Counter(smallest[largest_until:])
    if more >= len(values):
        assert set(counts) == set(range(1, len(lists)))
        assert max(counts.values()) - min(counts.values()) <= 1
    for number in range(until):
        drawn, bound = space.encode(sampler.choice_at(number)), space.encode(sampler.smallest_at(number))
        assert all(index <= most for index, most in zip(drawn, bound, strict=True))


def test_with_two_values_shrinking_progressively_is_shrinking_at_once():
    space = make_space(values=(32, 16))
    train = {"steps": 30, "largest_first": 0.4}
    at_once, progressive = (
        draw_by_recipe(TrainSection(**train, shrinking=shrinking), space, 30, seed=5)
        for shrinking in ("at_once", "progressive")
    )
    assert [at_once.draw() for _ in range(30)] == [progressive.draw() for _ in range(30)]


def test_a_nested_draw_takes_every_rank_equally_often_for_all_groups():
    space, draws = make_space(), 6400
    sampler = RankSampler(space, seed=0, kind="nested")
    drawn = [set(sampler.draw().values()) for _ in range(draws)]
    assert all(len(ranks) == 1 for ranks in drawn)
    counts = collections.Counter(rank for ranks in drawn for rank in ranks)
    assert set(counts) == set(range(1, 33))
    expected = draws / 32
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 61.1  # 0.999 quantile, 31 degrees


def test_a_nested_draw_leaves_a_group_of_one_rank_alone_and_shares_its_place_with_widths():
    space = make_space(values=(32,))
    widths = WidthTemplate(name="ffn", producers=("mlp.up_proj",), consumers=("mlp.down_proj",), values=(96, 64, 48))
    space = space.model_validate({**space.model_dump(by_alias=True), "templates": (*space.templates, widths)})
    sampler = RankSampler(space, seed=3, kind="nested")
    drawn = [sampler.draw() for _ in range(200)]
    assert {choice["layers.0.qk"] for choice in drawn} == {32}
    assert len({choice["layers.0.up"] for choice in drawn}) > 16
    for choice in drawn:
        # Of 32 ranks the first eleven belong to the first of three widths, with what lies across the border.
        place = (32 - choice["layers.2.up"]) / 32
        assert choice["layers.2.ffn"] in {(96, 64, 48)[int(3 * at)] for at in (place, place + 1 / 33)}


@pytest.mark.parametrize("draw", ["shared", "independent", "nested"])
@pytest.mark.parametrize("shrinking", ["at_once", "progressive"])
def test_a_draw_is_a_function_of_the_recipe_the_seed_and_the_number_alone(draw, shrinking):
    section = TrainSection(steps=40, draw=draw, shrinking=shrinking, largest_first=0.25)
    whole = draw_by_recipe(section, make_space(), 40, seed=7)
    sequence = [whole.draw() for _ in range(40)]
    assert sequence[:10] == [make_space().maximal()] * 10
    # Another process, or the same one after an interruption.
    resumed = draw_by_recipe(section, make_space(), 40, seed=7)
    resumed.drawn = 23
    assert [resumed.draw() for _ in range(17)] == sequence[23:]
    other = draw_by_recipe(section, make_space(), 40, seed=8)
    assert [other.draw() for _ in range(40)] != sequence


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [("shared", [32, 24, 16, 32, 16, 16, 16, 16]), ("nested", [32, 22, 5, 23, 5, 3, 8, 7])],
)
def test_the_sequence_of_one_draw_for_all_groups_is_fixed_for_good(kind, ranks):
    # As above.
    sampler = RankSampler(make_space(), seed=0, kind=kind)
    assert [sampler.draw()["layers.0.qk"] for _ in range(8)] == ranks
