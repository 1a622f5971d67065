"""Every strategy on an objective whose answer is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from search.exploration import explore
from search.journal import Journal
from search.strategies.anchored import anchors_of
from search.strategies.cost_limit import Bound, CostLimit, find_cheapest
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Effort, Trial, make_strategy
from shearling.errors import NoCandidate, UsageError
from tests.support.synthetic_search import ROWS, SIZES, Separable, everything, run, silent


@pytest.mark.parametrize(("size", "index"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_the_heuristic_is_the_lower_middle(size: int, index: int) -> None:
    assert Grid((size,)).heuristic == (index,)


def test_more_candidates_than_a_float_holds_are_refused_with_their_number() -> None:
    with pytest.raises(UsageError, match=r"takes 6\.9e\+313 evaluations, 10 are allowed"):
        make_strategy("exhaustive", Grid((5,) * 449), Effort(evaluations=10))


def test_heuristic_search_evaluates_one_candidate(tmp_path: Path) -> None:
    records = run(tmp_path / "j", Separable(), "heuristic")
    assert [record.choice_idx for record in records] == [(1, 1, 1, 1)]


def test_the_one_candidate_of_a_heuristic_search_keeps_the_limit() -> None:
    grid, objective = Grid(SIZES), Separable()
    middle = objective.params(grid.heuristic)
    for share in (0.9, 0.5):
        limit = CostLimit.of([Bound.of_share(share, objective.params, grid)], grid)
        asked = make_strategy("heuristic", grid, Effort(evaluations=1, limit=limit)).ask()
        assert [limit.allows(indices) for indices in asked] == [True]
        assert (asked == [grid.heuristic]) == (middle <= share * objective.params((0, 0, 0, 0)))


def test_random_draws_are_distinct_and_cover_a_small_space(tmp_path: Path) -> None:
    records = run(tmp_path / "j", Separable(), "random", evaluations=1000)
    assert sorted(record.choice_idx for record in records) == everything()


@pytest.mark.parametrize("algorithm", ["random", "hill_climbing", "nsga2", "rnsga2"])
def test_the_same_seed_gives_the_same_records(algorithm: str, tmp_path: Path) -> None:
    first, second = (run(tmp_path / name, Separable(), algorithm, seed=3) for name in "ab")
    assert first == second
    assert run(tmp_path / "c", Separable(), algorithm, seed=4) != first


@pytest.mark.parametrize("evaluations", [6, 23, 24, 29])
def test_nsga2_runs_whole_generations_and_never_measures_twice(evaluations: int, tmp_path: Path) -> None:
    objective = Separable()
    records = run(tmp_path / "j", objective, "nsga2", evaluations=evaluations, population=6)
    assert len({record.generation for record in records}) == evaluations // 6
    assert len(records) <= evaluations // 6 * 6
    assert len(objective.measured) == len(set(objective.measured)) == sum(not record.cached for record in records)
    assert {record.choice_idx for record in records[:6]} >= {(0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2)}


def test_nsga2_serves_repeated_candidates_from_the_journal(tmp_path: Path) -> None:
    objective = Separable()
    records = run(tmp_path / "j", objective, "nsga2", evaluations=200, population=8)
    hits = [record for record in records if record.cached]
    assert hits, "81 candidates in 200 requests must repeat"
    first = {record.choice_idx: record for record in records if not record.cached}
    for hit in hits:
        assert (hit.accuracy, hit.adapter_params) == (
            first[hit.choice_idx].accuracy,
            first[hit.choice_idx].adapter_params,
        )
        assert hit.seconds == 0


def test_nsga2_needs_one_generation() -> None:
    with pytest.raises(UsageError, match="5 evaluations are less than one population of 8"):
        make_strategy("nsga2", Grid(SIZES), Effort(5, population=8))


def test_nsga2_mutates_and_approaches_the_front(tmp_path: Path) -> None:
    sizes = (3,) * 12
    objective = Separable(weights=tuple(range(1, 13)), preferred=(1, 0, 2) * 4)
    records = run(tmp_path / "j", objective, "nsga2", sizes=sizes, evaluations=400, population=20)
    best = max(record.accuracy for record in records)
    assert best > max(record.accuracy for record in records[:20]) + 0.1


def test_hill_climbing_finds_the_optimum_of_a_separable_objective(tmp_path: Path) -> None:
    objective = Separable()
    records = run(tmp_path / "j", objective, "hill_climbing", evaluations=81, population=8)
    assert records[0].choice_idx == (1, 1, 1, 1)
    assert max(records, key=lambda record: record.accuracy).choice_idx == objective.preferred
    assert len(objective.measured) == len(set(objective.measured))


@pytest.mark.parametrize("evaluations", [1, 2, 7, 20])
def test_hill_climbing_keeps_its_budget_and_climbs(evaluations: int, tmp_path: Path) -> None:
    records = run(tmp_path / "j", Separable(), "hill_climbing", evaluations=evaluations, population=3)
    assert len(records) <= evaluations
    by_id = {record.id: record for record in records}
    centres = [by_id[record.parent].accuracy for record in records if record.parent is not None]
    assert centres == sorted(centres)


def test_hill_climbing_prefers_fewer_parameters_among_equals() -> None:
    strategy = make_strategy("hill_climbing", Grid((3,)), Effort(9, population=4))
    (start,) = strategy.ask()
    strategy.tell([Trial(start, 0.5, 100)])
    strategy.tell([Trial(indices, 0.5, 100 - indices[0]) for indices in strategy.ask()])
    strategy.ask()
    assert strategy.parent == (2,)


@pytest.mark.parametrize("algorithm", ["random", "hill_climbing", "nsga2", "rnsga2"])
def test_a_budget_is_kept_by_every_candidate_but_the_reference(algorithm: str, tmp_path: Path) -> None:
    sizes, share = (3,) * 12, 0.6
    objective = Separable(weights=tuple(range(1, 13)), preferred=(1, 0, 2) * 4)
    records = run(tmp_path / "j", objective, algorithm, sizes=sizes, evaluations=120, population=12, share=share)
    largest = objective.params((0,) * 12)
    dear = [record.choice_idx for record in records if record.adapter_params > share * largest]
    assert dear == ([(0,) * 12] if algorithm.endswith("nsga2") else [])
    assert len(records) > 12
    assert records == run(
        tmp_path / "again", objective, algorithm, sizes=sizes, evaluations=120, population=12, share=share
    )


def test_a_budget_directs_the_evaluations(tmp_path: Path) -> None:
    sizes, share = (3,) * 12, 0.6
    objective = Separable(weights=tuple(range(1, 13)), preferred=(0,) * 12)
    limit = share * objective.params((0,) * 12)
    free, limited = (
        run(tmp_path / str(limits), objective, "nsga2", sizes=sizes, evaluations=240, population=12, share=limits)
        for limits in (None, share)
    )
    best_free, best_limited = (
        max(record.accuracy for record in records if record.adapter_params <= limit) for records in (free, limited)
    )
    assert best_limited > best_free


def test_random_draws_end_where_a_budget_leaves_few_candidates(tmp_path: Path) -> None:
    objective = Separable()
    share = objective.params((2, 2, 2, 1)) / objective.params((0, 0, 0, 0))
    records = run(tmp_path / "j", objective, "random", evaluations=50, share=share)
    affordable = [
        indices for indices in everything() if objective.params(indices) <= share * objective.params((0, 0, 0, 0))
    ]
    assert sorted(record.choice_idx for record in records) == affordable


def test_a_budget_that_nothing_keeps_is_refused() -> None:
    grid = Grid(SIZES)
    with pytest.raises(NoCandidate, match=r"the cheapest sub-network costs 50\.0% of the largest, more than 49\.0%"):
        CostLimit.of([Bound.of_share(0.49, Separable().params, grid)], grid)


def test_no_change_of_one_group_is_cheaper_than_the_cheapest() -> None:
    """Layers of two groups whose times are anything at all, as those of a runtime may be."""
    random, grid = np.random.default_rng(4), Grid((3, 2) * 4)
    for _ in range(20):
        times = random.random((4, 3, 2))

        def time_of(indices: tuple[int, ...], times=times) -> float:
            return float(sum(times[layer, indices[2 * layer], indices[2 * layer + 1]] for layer in range(4)))

        found = find_cheapest(time_of, grid)
        assert all(time_of(found) <= time_of(other) for other in changed_in_one_group(found, grid))
        assert time_of(found) <= time_of(grid.minimal)


def changed_in_one_group(indices: tuple[int, ...], grid: Grid) -> list[tuple[int, ...]]:
    return [
        (*indices[:place], value, *indices[place + 1 :])
        for place, size in enumerate(grid.sizes)
        for value in range(size)
    ]


def test_several_limits_are_kept_together_and_a_candidate_that_cannot_shrink_becomes_the_cheapest() -> None:
    grid = Grid(SIZES)
    objective = Separable()

    def slower_when_smaller(indices: tuple[int, ...]) -> float:
        return 10.0 + indices[0] - 0.1 * sum(indices[1:])

    size = Bound.of_share(0.9, objective.params, grid)
    time, too_fast = (
        Bound.below(most, slower_when_smaller, show=lambda ms: f"{ms:.1f} ms", where="max_latency_ms")
        for most in (9.5, 9.3)
    )
    limit = CostLimit.of([size, time], grid)
    assert limit.allows(limit.cheapest)
    random = np.random.default_rng(0)
    for indices in everything():
        shrunk = limit.shrink(indices, grid, random)
        assert objective.params(shrunk) <= 0.9 * objective.params((0, 0, 0, 0))
        assert slower_when_smaller(shrunk) <= 9.5
        assert shrunk == indices or not limit.allows(indices)
    with pytest.raises(NoCandidate, match=r"the cheapest sub-network has 9\.4 ms, more than 9\.3 ms") as caught:
        CostLimit.of([size, too_fast], grid)
    assert caught.value.exit_code == 1


def test_limits_that_only_mixtures_keep_are_kept() -> None:
    """Small is slow: the smallest is too slow, the fastest too large, and what lies between is neither."""
    grid = Grid((2,) * 4)
    size = Bound.below(6.0, lambda indices: 8.0 - sum(indices), show=str, where="max_bytes")
    time = Bound.below(10.5, lambda indices: 8.0 + sum(indices), show=str, where="max_latency_ms")
    assert sum(CostLimit.of([size, time], grid).cheapest) == 2
    for seed in range(40):
        check_that_what_is_refused_can_hardly_be_kept(np.random.default_rng(seed))
    at_once = Bound.below(9.5, time.cost_of, show=str, where="max_latency_ms")
    with pytest.raises(NoCandidate, match="was found that keeps all limits: max_bytes and max_latency_ms"):
        CostLimit.of([size, at_once], grid)


def check_that_what_is_refused_can_hardly_be_kept(random: np.random.Generator) -> None:
    """Six groups of three whose bytes and times are anything at all."""
    grid, places = Grid((3,) * 6), range(6)
    sizes, times = random.integers(1, 10, (2, 6, 3)).astype(float)

    def cost_of(costs: np.ndarray) -> Callable[[Indices], float]:
        return lambda indices: float(sum(costs[place, indices[place]] for place in places))

    every = list(itertools.product(range(3), repeat=6))
    kept = every[int(random.integers(len(every)))]
    bounds = [
        Bound.below(cost_of(costs)(kept), cost_of(costs), show=str, where=where)
        for costs, where in ((sizes, "max_bytes"), (times, "max_latency_ms"))
    ]
    keeping = [indices for indices in every if all(bound.cost_of(indices) <= bound.most for bound in bounds)]
    try:
        limit = CostLimit.of(bounds, grid)
    except NoCandidate:
        assert len(keeping) < 4, f"{len(keeping)} of {len(every)} keep both"
    else:
        assert limit.allows(limit.cheapest)


def test_rnsga2_gathers_near_the_reference_point_and_nsga2_along_the_front(tmp_path: Path) -> None:
    sizes = (3,) * 12
    objective = Separable(weights=(1,) * 12, preferred=(0,) * 12)
    spreads = {}
    for algorithm in ("nsga2", "rnsga2"):
        records = run(tmp_path / algorithm, objective, algorithm, sizes=sizes, evaluations=480, population=16)
        late = [record for record in records if record.generation >= 20]
        spreads[algorithm] = max(r.adapter_params for r in late) - min(r.adapter_params for r in late)
    assert spreads["rnsga2"] < 0.7 * spreads["nsga2"]


def test_rnsga2_survives_a_front_without_a_span() -> None:
    strategy, told = make_strategy("rnsga2", Grid(SIZES), Effort(24, population=6)), 0
    while asked := strategy.ask():
        strategy.tell([Trial(indices, 0.5, 100) for indices in asked])
        told += len(asked)
    assert told == 24


@pytest.mark.parametrize("algorithm", ["nsga2", "rnsga2", "hill_climbing"])
def test_where_nothing_is_saved_accuracy_alone_leads(algorithm: str) -> None:
    """Eight groups, of which uniform draws would have to hit all."""
    objective = Separable(weights=(1,) * 8, preferred=(1, 0, 2, 1) * 2)
    strategy, best = make_strategy(algorithm, Grid((3,) * 8), Effort(240, population=12)), []
    while asked := strategy.ask():
        trials = [Trial(indices, objective.accuracy(indices), 0.0) for indices in asked]
        best.append(max(trial.accuracy for trial in trials))
        strategy.tell(trials)
    assert max(best) >= 1 - 1 / ROWS
    assert max(best) > best[0]


def test_exhaustive_asks_for_everything_once_and_finds_the_optimum(tmp_path: Path) -> None:
    objective = Separable()
    records = run(tmp_path / "j", objective, "exhaustive", evaluations=81)
    assert [record.choice_idx for record in records] == everything()
    assert max(records, key=lambda record: record.accuracy).choice_idx == objective.preferred
    cheap = run(tmp_path / "cheap", objective, "exhaustive", evaluations=81, share=0.6)
    most = 0.6 * objective.params((0,) * len(SIZES))
    assert [record.choice_idx for record in cheap] == [each for each in everything() if objective.params(each) <= most]


@pytest.mark.parametrize(("sizes", "count"), [(SIZES, "81"), ((3,) * 40, r"1.2e\+19")])
def test_exhaustive_refuses_what_it_may_not_finish(sizes: tuple[int, ...], count: str) -> None:
    with pytest.raises(UsageError, match=f"takes {count} evaluations, 80 are allowed"):
        make_strategy("exhaustive", Grid(sizes), Effort(80))


def test_a_plateau_is_left_after_three_rounds_that_are_no_better() -> None:
    strategy = make_strategy("hill_climbing", Grid((5,) * 6), Effort(200, population=2))
    (start,) = strategy.ask()
    strategy.tell([Trial(start, 0.5, 100)])
    rounds = 0
    while asked := strategy.ask():
        assert strategy.parent == start, "as good is not better"
        strategy.tell([Trial(indices, 0.5, 100) for indices in asked])
        rounds += 1
    assert rounds == 3


def test_what_saves_nothing_is_not_made_smaller_to_keep_a_limit() -> None:
    """Bytes that the first two of four groups have; the others are free, and worth what they are."""
    grid = Grid((4,) * 4)
    limit = CostLimit.of([Bound.below(5.0, lambda indices: 8.0 - indices[0] - indices[1], show=str, where="x")], grid)
    for seed in range(20):
        shrunk = limit.shrink((0, 0, 1, 2), grid, np.random.default_rng(seed))
        assert shrunk[2:] == (1, 2)
        assert sum(shrunk[:2]) == 3


class Twice:
    """Asks for the same candidate twice in a generation."""

    planned, parent = 3, None

    def __init__(self) -> None:
        self.told: list[Trial] = []

    def ask(self) -> list[Indices]:
        return [] if self.told else [(0, 0, 0, 0), (0, 0, 0, 0), (2, 2, 2, 2)]

    def tell(self, trials: Sequence[Trial]) -> None:
        self.told += trials


def test_a_candidate_that_a_generation_has_twice_is_measured_once_and_counts_twice(tmp_path: Path) -> None:
    objective, strategy = Separable(), Twice()
    options = {"grid": Grid(SIZES), "algorithm": "twice", "seed": 0, "advance": silent}
    records = explore(strategy, objective.measure_all, Journal(tmp_path / "j"), **options)
    assert objective.measured == [(0, 0, 0, 0), (2, 2, 2, 2)]
    assert [record.cached for record in records] == [False, True, False]
    for record, trial in zip(records, strategy.told, strict=True):
        assert record.accuracy == trial.accuracy == objective.accuracy(record.choice_idx)
        assert record.adapter_params == objective.params(record.choice_idx)


def test_every_search_looks_at_the_largest_and_the_smallest_and_at_the_middle_where_it_may() -> None:
    grid, objective = Grid(SIZES), Separable()
    largest, middle, smallest = grid.maximal, grid.heuristic, grid.minimal
    assert anchors_of(grid, None) == (largest, middle, smallest)
    for share, anchors in ((0.8, (largest, middle, smallest)), (0.6, (largest, smallest))):
        limit = CostLimit.of([Bound.of_share(share, objective.params, grid)], grid)
        assert anchors_of(grid, limit) == anchors
    assert anchors_of(Grid((2, 2)), None) == ((0, 0), (1, 1)), "each once"
