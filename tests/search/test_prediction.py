"""What a search says about itself, over hundreds of searches whose truth is known: no model, the rest is real."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from search.front import BestRule
from shearling.evaluation.confidence import wilson_interval
from tests.support.simulated_search import Outcome, SimulatedRows, simulate

SEARCHES, CANDIDATES, ROWS = 200, 8, 400
"""The demo's candidates and validation rows."""

Searches = list[tuple[SimulatedRows, Outcome]]
Draw = Callable[[np.random.Generator], list[float]]


def searches(draw: Draw, rule: BestRule | None = None) -> Searches:
    random = np.random.default_rng(0)
    found = []
    for _ in range(SEARCHES):
        rows = SimulatedRows(draw(random), random, rows=ROWS)
        found.append((rows, simulate(rows, rule or BestRule())))
    return found


def truth(rows: SimulatedRows, found: Outcome) -> float:
    return rows.accuracies[found.best.choice_idx[0]]


def lost(found: Searches) -> float:
    """Mean accuracy of the largest less that of the chosen."""
    return float(np.mean([rows.accuracies[0] - truth(rows, outcome) for rows, outcome in found]))


def scattered(random: np.random.Generator) -> list[float]:
    return list(random.normal(0.72, 0.02, CANDIDATES))


@pytest.fixture(scope="module")
def drawn() -> Searches:
    return searches(scattered)


def test_the_interval_on_held_back_rows_covers_the_truth(drawn: Searches) -> None:
    covered = []
    for rows, found in drawn:
        assert found.held_back is not None
        low, high = wilson_interval(found.held_back.accuracy, found.held_back.n_eval)
        covered.append(low <= truth(rows, found) <= high)
    assert np.mean(covered) >= 0.9


def test_the_prediction_is_unbiased_and_the_winner_flatters_itself(drawn: Searches) -> None:
    errors = [found.held_back.accuracy - truth(rows, found) for rows, found in drawn if found.held_back is not None]
    # Of 133 rows an accuracy has a standard error of 3.9 points, the mean of 200 one of 0.28.
    assert len(errors) == SEARCHES
    assert abs(np.mean(errors)) < 0.007
    flattery = []
    for rows, _ in drawn:
        choosing = rows.answers[:, rows.split.places_of(range(rows.split.choosing))].mean(axis=1)
        winner = int(choosing.argmax())
        flattery.append(choosing[winner] - rows.accuracies[winner])
    assert np.mean(flattery) > 0.012


def test_what_was_chosen_is_no_worse_than_the_largest(drawn: Searches) -> None:
    assert lost(drawn) <= 0.0


def test_among_equals_the_largest_stays() -> None:
    """Whatever is chosen of equals is as good; what is not so small is how often chance would choose."""
    found = searches(lambda random: [0.72] * CANDIDATES)
    preferred = np.mean([outcome.best.choice_idx != (0,) for _, outcome in found])
    # A family-wise level of 5 %, and the error of 200 searches.
    assert preferred <= 0.08


def test_where_the_largest_is_the_best_little_is_lost() -> None:
    assert lost(searches(lambda random: [0.72, *random.uniform(0.69, 0.72, CANDIDATES - 1)])) < 0.003


def test_a_candidate_that_is_eight_points_better_is_found() -> None:
    def one_better(random: np.random.Generator) -> list[float]:
        accuracies = [0.72] * CANDIDATES
        accuracies[int(random.integers(1, CANDIDATES))] = 0.8
        return accuracies

    found = searches(one_better)
    assert np.mean([truth(rows, outcome) == 0.8 for rows, outcome in found]) > 0.6
    assert lost(found) < -0.045
