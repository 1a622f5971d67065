"""The race: who goes on, on which rows, at what price; and the rule that ends it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search.evidence import compare_with_largest, find_held_back, find_longest
from search.examination import Examiner
from search.front import BestRule
from search.journal import Journal
from search.objective import CandidateFigures
from search.race import longest_race
from search.strategies.grid import Indices
from shearling.errors import NoCandidate
from tests.support.simulated_search import SimulatedRows, Unwritten, simulate

EQUAL = (0.72,) * 8


def rows(accuracies: tuple[float, ...] = EQUAL, *, seed: int = 0, **options: int) -> SimulatedRows:
    return SimulatedRows(accuracies, np.random.default_rng(seed), **{"rows": 400, **options})


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("rule", [BestRule(), BestRule(prefer="cheaper"), BestRule(accuracy_delta=0.01)])
def test_no_candidate_sees_a_row_twice_and_the_demo_costs_no_more_than_its_evaluations(
    rule: BestRule, seed: int
) -> None:
    simulated = rows(seed=seed, limit=200)
    found = simulate(simulated, rule)
    assert len(set(simulated.forwarded)) == len(simulated.forwarded)
    choosing = [position for _, position in simulated.forwarded if position < simulated.split.choosing]
    assert len(choosing) <= 8 * 200
    held_back = {indices for indices, position in simulated.forwarded if position >= simulated.split.choosing}
    assert held_back == {found.best.choice_idx}


def test_the_default_rule_spends_a_third_less() -> None:
    simulated = rows(limit=200)
    simulate(simulated, BestRule())
    # 8 on the first half, then 4 and 2: the largest and the better of the others.
    assert len(simulated.forwarded) == 8 * 100 + 4 * 50 + 2 * 50 + 133


@pytest.mark.parametrize("rule", [BestRule(), BestRule(prefer="cheaper"), BestRule(accuracy_delta=0.02)])
@pytest.mark.parametrize("stop_after", [0, 3, 8, 9, 10, 12])
def test_interrupted_and_resumed_equals_uninterrupted(stop_after: int, rule: BestRule, tmp_path: Path) -> None:
    whole, parts, again = rows(), rows(), rows()
    expected = simulate(whole, rule, Journal(tmp_path / "whole"))
    parts.stop_after = min(stop_after, whole.measurements - 1)
    with pytest.raises(KeyboardInterrupt):
        simulate(parts, rule, Journal(tmp_path / "parts"))
    assert simulate(again, rule, Journal(tmp_path / "parts")) == expected
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert parts.forwarded + again.forwarded == whole.forwarded


def test_more_evaluations_and_another_rule_continue_the_same_journal(tmp_path: Path) -> None:
    journal, narrow, wide = tmp_path / "j", rows(EQUAL[:4]), rows()
    simulate(narrow, BestRule(), Journal(journal))
    # Neither what the first race measured nor the first candidates are measured again.
    known = {(record.choice_idx, record.part, record.n_eval) for record in Journal(journal).records}
    found = simulate(wide, BestRule(accuracy_delta=0.02), Journal(journal))
    again = [(record.choice_idx, record.part, record.n_eval) for record in Journal(journal).records]
    assert len(again) == len(set(again)) > len(known)
    assert found.best == simulate(rows(), BestRule(accuracy_delta=0.02)).best.model_copy(update={"i": found.best.i})


def test_the_journal_says_on_which_rows_a_record_was_measured(tmp_path: Path) -> None:
    simulated = rows()
    journal = Journal(tmp_path / "j")
    simulate(simulated, BestRule(), journal)
    split = simulated.split
    for record in Journal(tmp_path / "j").records:
        positions = split.held_back if record.part == "held_back" else range(record.n_eval)
        assert record.eval_split_sha256 == split.sha256(positions)
        expected = simulated.answers[record.choice_idx[0], split.places_of(positions)]
        assert record.answers == tuple(expected)
        assert record.accuracy == pytest.approx(expected.mean())
        assert record.accuracy_stderr is None or record.accuracy_stderr == pytest.approx(
            expected.std(ddof=1) / len(expected) ** 0.5
        )
    assert {(record.part, record.n_eval) for record in journal.records} == {
        ("explored", 134),
        ("raced", 200),
        ("raced", 267),
        ("held_back", 133),
    }


def test_records_on_other_rows_are_compared_on_those_in_common(tmp_path: Path) -> None:
    simulated, journal = rows(), Journal(tmp_path / "j")
    simulate(simulated, BestRule(), journal)
    dropped = next(record for record in journal.explored if find_longest(record.choice_idx, journal.records) is record)
    found = compare_with_largest(dropped, journal.records)
    assert found is not None
    common = simulated.answers[:, simulated.split.places_of(range(134))].astype(float)
    assert (found.n, found.largest_accuracy) == (134, pytest.approx(common[0].mean()))
    assert found.difference == pytest.approx(common[dropped.choice_idx[0]].mean() - common[0].mean())


def test_within_a_delta_the_cheapest_that_holds_on_all_rows_is_the_best() -> None:
    """The race skips measurements; the enumeration does not."""
    for seed in range(20):
        simulated = rows((0.75, 0.74, 0.745, 0.72, 0.735, 0.70, 0.66, 0.55), seed=seed)
        found = simulate(simulated, BestRule(accuracy_delta=0.01)).best
        choosing = simulated.answers[:, simulated.split.places_of(range(simulated.split.choosing))].astype(float)
        within = [index for index in range(8) if choosing[index].mean() >= choosing[0].mean() - 0.01 - 1e-12]
        # Only what the first rows rule out by more than chance may be missed, which is one in forty.
        assert found.choice_idx[0] in within
        assert found.choice_idx[0] == max(within)


def test_cheaper_takes_the_cheapest_that_is_not_told_from_the_largest() -> None:
    assert simulate(rows((0.9,) * 5), BestRule(prefer="cheaper")).best.choice_idx != (0,)
    assert simulate(rows((0.9, 0.6, 0.6, 0.5, 0.4)), BestRule(prefer="cheaper")).best.choice_idx == (0,)
    assert simulate(rows((0.9, 0.6, 0.9, 0.5, 0.4)), BestRule(prefer="cheaper")).best.choice_idx == (2,)


def test_what_cannot_be_accurate_enough_costs_no_more_rows() -> None:
    simulated = rows((0.9, 0.3, 0.3))
    assert simulate(simulated, BestRule(prefer="cheaper")).best.choice_idx == (0,)
    # All three on the first part, the largest on the other two, and on what is held back.
    assert len(simulated.forwarded) == 3 * 134 + 133 + 133


def test_a_given_reference_needs_no_largest() -> None:
    rule = BestRule(accuracy_delta=0.05, reference_accuracy=0.9)
    assert simulate(rows((0.95, 0.95, 0.6)), rule).best.choice_idx == (1,)
    with pytest.raises(NoCandidate, match=r"none of 3 sub-networks has accuracy >= 0\.85"):
        simulate(rows((0.6, 0.6, 0.6)), rule)


def test_a_limit_that_keeps_the_largest_out_leaves_it_as_the_reference() -> None:
    found = simulate(rows((0.9, 0.7, 0.85, 0.6)), BestRule(max_cost=999))
    assert found.best.choice_idx == (2,)
    assert found.finalists[0].choice_idx == (0,)
    assert {record.n_eval for record in found.finalists} == {267}


def test_what_breaks_a_limit_takes_nobodys_place_in_the_race() -> None:
    """Those that are too dear are the more accurate: by accuracy alone no other would get to the end."""
    simulated = rows((0.9, 0.95, 0.95, 0.95, 0.95, 0.7, 0.8, 0.7))
    rule, explored = BestRule(max_params=995), simulated.split.parts[0]
    assert simulate(simulated, rule).best.choice_idx == (6,)
    raced = {indices for indices, position in simulated.forwarded if explored <= position < simulated.split.choosing}
    assert raced == {(0,), (6,)}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rule", [BestRule(), BestRule(prefer="cheaper", min_accuracy=0.76)])
def test_a_race_takes_the_most_that_it_may_where_nothing_is_ruled_out_early(count: int, rule: BestRule) -> None:
    simulated, journal = rows(EQUAL[:count]), Unwritten()
    # All candidates alike, on any part of the rows: four points below what is wanted, which is told at the end alone.
    simulated.answers[:] = np.arange(simulated.answers.shape[1]) % 25 < 18
    if rule.min_accuracy is None:
        simulate(simulated, rule, journal)
    else:
        with pytest.raises(NoCandidate):
            simulate(simulated, rule, journal)
    raced = sum(record.part == "raced" for record in journal.records)
    assert raced == longest_race(journal.explored, rule, looks=len(simulated.split.parts) - 1)


def test_what_is_held_back_is_compared_with_the_largest_on_the_same_rows() -> None:
    simulated, journal = rows((0.6, 0.9)), Unwritten()
    best = simulate(simulated, BestRule(), journal).best
    assert best.choice_idx == (1,)
    largest = find_longest((0,), journal.records)
    assert largest is not None
    Examiner(simulated.measure_all, journal, simulated.split).hold_against([best, largest])
    held_back = find_held_back(best, journal.records)
    assert held_back is not None
    found = compare_with_largest(held_back, journal.records)
    unseen = simulated.answers[:, simulated.split.places_of(simulated.split.held_back)].astype(float)
    assert found is not None
    assert (found.n, found.largest_accuracy) == (133, pytest.approx(unseen[0].mean()))
    assert found.difference == pytest.approx(unseen[1].mean() - unseen[0].mean())


class Losing(SimulatedRows):
    """Every row costs a loss of its own, and a candidate makes it larger."""

    def measure(self, indices: Indices, positions: range) -> CandidateFigures:
        losses = tuple(1 + position / 100 + indices[0] for position in positions)
        return replace(super().measure(indices, positions), loss=sum(losses) / len(losses), losses=losses)


def test_a_loss_is_the_mean_of_the_rows_that_a_record_names_however_often_they_were_added_to() -> None:
    simulated, journal = Losing(EQUAL, np.random.default_rng(0), rows=400), Unwritten()
    simulate(simulated, BestRule(), journal)
    assert {record.n_eval for record in journal.records if record.part == "raced"} == {200, 267}
    for record in journal.records:
        positions = simulated.split.held_back if record.part == "held_back" else range(record.n_eval)
        assert record.losses == tuple(1 + position / 100 + record.choice_idx[0] for position in positions)
        assert record.loss == pytest.approx(sum(record.losses) / len(positions))
