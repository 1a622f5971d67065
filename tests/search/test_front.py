"""The Pareto front against brute force, and the rule that names the best."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from search.front import BestRule, best_record, distinct, dominates, pareto_document, pareto_front, progression_rows
from search.limits import limited_rule, make_limit
from search.plot import draw_pareto
from search.strategies.grid import Grid, Indices
from shearling.errors import NoCandidate
from tests.support.small_searches import SMALL_SEARCH
from tests.support.synthetic_search import Separable, everything, run


def exact_front(objective: Separable) -> set[tuple[int, ...]]:
    scores = {indices: (objective.accuracy(indices), objective.params(indices)) for indices in everything()}
    front = set()
    for indices, (accuracy, params) in scores.items():
        beaten = any(a >= accuracy and p <= params and (a > accuracy or p < params) for a, p in scores.values())
        if not beaten:
            front.add(indices)
    return front


@pytest.mark.parametrize("preferred", [(1, 0, 2, 1), (0, 0, 0, 0), (2, 2, 2, 2), (2, 0, 1, 0)])
def test_the_front_of_the_whole_space_is_the_exact_front(preferred: tuple[int, ...], tmp_path: Path) -> None:
    objective = Separable(preferred=preferred)
    records = run(tmp_path / "j", objective, "random", evaluations=81)
    document = pareto_document(records)
    assert {tuple(point["choice_idx"]) for point in document["points"]} == exact_front(objective)


@pytest.mark.parametrize(
    ("left", "right", "dominated"),
    [
        ((0.5, 10), (0.5, 11), True),
        ((0.6, 10), (0.5, 10), True),
        ((0.6, 10), (0.5, 11), True),
        ((0.5, 10), (0.5, 10), False),
        ((0.6, 11), (0.5, 10), False),
        ((0.5, 11), (0.5, 10), False),
    ],
)
def test_one_dominates_where_it_is_better_in_one_and_no_worse_in_the_other(
    left: tuple[float, int], right: tuple[float, int], dominated: bool, tmp_path: Path
) -> None:
    record = run(tmp_path / "j", Separable(), "heuristic")[0]
    first, second = (
        record.model_copy(update={"accuracy": accuracy, "adapter_params": params, "choice_idx": (place,) * 4})
        for place, (accuracy, params) in enumerate((left, right))
    )
    assert dominates(first, second) is dominated
    assert (second in pareto_front([first, second])) is not dominated


def test_a_journal_marks_what_was_on_the_front_when_it_was_made(tmp_path: Path) -> None:
    records = run(tmp_path / "j", Separable(), "random", evaluations=30)
    for record in records:
        assert record.pareto == (not any(dominates(other, record) for other in records[: record.i]))
    assert all(record.pareto for record in pareto_front(records))


def test_the_best_is_the_most_accurate_of_those_that_beat_the_largest_then_the_smallest_then_the_first(
    tmp_path: Path,
) -> None:
    records = run(tmp_path / "j", Separable(), "random", evaluations=81)
    # 31 of 40 rows against 40, every one of the 9 a win: the truth is not in doubt, but for the number of candidates.
    assert best_record(records).choice_idx == (0, 0, 0, 0)
    three = [record for record in records if record.choice_idx in {(0, 0, 0, 0), (1, 0, 2, 1), (1, 0, 1, 1)}]
    assert best_record(three).choice_idx == (1, 0, 2, 1)
    assert best_record(three, explored=records).choice_idx == (0, 0, 0, 0)
    same = [
        record.model_copy(update={"accuracy": 1.0, "answers": (1.0,) * 40}) if any(record.choice_idx) else record
        for record in three
    ]
    assert best_record(same).choice_idx == (1, 0, 2, 1), "fewer parameters"
    same_size = [record.model_copy(update={"adapter_params": 1}) for record in same]
    assert best_record(same_size).choice_idx == (1, 0, 1, 1), "the first by index"
    likelier = [record.model_copy(update={"loss": float(record.choice_idx != (1, 0, 2, 1))}) for record in same_size]
    assert best_record(likelier).choice_idx == (1, 0, 2, 1), "less loss"


def test_graded_answers_that_are_better_more_often_and_worse_in_the_mean_leave_the_largest_the_best(
    tmp_path: Path,
) -> None:
    records = run(tmp_path / "j", Separable(), "random", evaluations=81)
    graded = {(0, 0, 0, 0): (0.60,) * 100, (1, 0, 2, 1): (0.62,) * 30 + (0.60,) * 62 + (0.0,) * 8}
    pair = [
        record.model_copy(update={"accuracy": math.fsum(answers) / 100, "answers": answers, "n_eval": 100})
        for record in records
        if (answers := graded.get(record.choice_idx))
    ]
    assert len(pair) == 2
    assert best_record(pair).choice_idx == (0, 0, 0, 0)


def test_equals_of_the_largest_leave_it_the_best_unless_cheaper_is_asked_for(tmp_path: Path) -> None:
    records = run(tmp_path / "j", Separable(), "random", evaluations=81)
    equal = [record.model_copy(update={"accuracy": 0.5, "answers": (0.0, 1.0) * 20}) for record in records]
    assert best_record(equal).choice_idx == (0, 0, 0, 0)
    assert best_record(equal, BestRule(prefer="cheaper")).choice_idx == (2, 2, 2, 2)
    assert best_record(equal, BestRule(accuracy_delta=0.0)).choice_idx == (2, 2, 2, 2)
    # One row of 40 less is no difference that rows tell; ten are.
    for lost, best in ((1, (2, 2, 2, 2)), (10, (0, 0, 0, 0))):
        answers = (0.0, 0.0) * lost + (0.0, 1.0) * (20 - lost)
        worse = [
            record.model_copy(update={"accuracy": 0.5 - lost / 40, "answers": answers})
            if any(record.choice_idx)
            else record
            for record in equal
        ]
        assert best_record(worse, BestRule(prefer="cheaper")).choice_idx == best
    without = [record for record in equal if any(record.choice_idx)]
    assert best_record(without).choice_idx == (2, 2, 2, 2), "where the largest was not evaluated, the fewest parameters"


def test_constraints_select_or_refuse_and_never_fall_back(tmp_path: Path) -> None:
    records = run(tmp_path / "j", Separable(), "random", evaluations=81)
    smallest = min(record.adapter_params for record in records)
    assert best_record(records, BestRule(max_params=smallest)).choice_idx == (2, 2, 2, 2)
    with pytest.raises(NoCandidate, match=f"adapter parameters <= {smallest - 1}; .*the smallest has {smallest}"):
        best_record(records, BestRule(max_params=smallest - 1))
    with pytest.raises(NoCandidate, match=r"none of 81 sub-networks has accuracy >= 1\.0 and"):
        best_record(records, BestRule(min_accuracy=1.0, max_params=smallest))


def test_progression_marks_each_new_best(tmp_path: Path) -> None:
    records = run(tmp_path / "j", Separable(), "random", evaluations=30)
    header, *rows = progression_rows(records)
    assert header == ["i", "id", "generation", "macs_m", "accuracy", "loss", "adapter_params", "seconds", "is_best"]
    marked = [row for row in rows if row[-1] == 1]
    assert [row[4] for row in marked] == sorted(row[4] for row in marked)
    assert marked[-1][0] == max(records, key=lambda record: record.trial.merit).i
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    assert len(list(csv.reader(io.StringIO(stream.getvalue())))) == 30


def test_the_plot_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    records = run(tmp_path / "j", Separable(), "random", evaluations=30)
    for name in "ab":
        (tmp_path / name).mkdir()
        draw_pareto(records, best_record(records), records[0], tmp_path / name, task="synthetic")
    for name in ("pareto.svg", "pareto.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() != b""


def test_the_words_say_which_rule_chose(tmp_path: Path) -> None:
    generous, tight = BestRule(max_bytes=10**9), BestRule(max_params=12, min_accuracy=0.25)
    assert generous.words("none").startswith("the largest sub-network, unless another with bytes <= 1000000000 is more")
    alone = tight.words("none", compared=False)
    assert alone.startswith("max accuracy with adapter parameters <= 12 and accuracy >= 0.25, ties")
    assert "with adapter parameters <= 12" in replace(tight, prefer="cheaper").words("bytes")


def test_a_candidate_counts_once_and_by_its_first_record_and_equal_outcomes_all_count(tmp_path: Path) -> None:
    records = run(tmp_path / "j", Separable(), "random", evaluations=81)
    again = [
        record.model_copy(update={"i": len(records) + place, "cached": True}) for place, record in enumerate(records)
    ]
    assert pareto_document([*records, *again]) == pareto_document(records)
    assert distinct([*again, *records]) == again
    front = pareto_front(records)
    equal = front[0].model_copy(update={"choice_idx": (9, 9, 9, 9), "i": 99})
    assert {record.i for record in pareto_front([*records, equal])} == {record.i for record in [*front, equal]}


def test_what_must_be_beaten_by_more_than_chance_is_corrected_for_each_candidate_once(tmp_path: Path) -> None:
    records = run(tmp_path / "j", Separable(), "random", evaluations=81)
    largest, other, third = (
        next(record for record in records if record.choice_idx == indices)
        for indices in ((0, 0, 0, 0), (1, 0, 2, 1), (2, 2, 2, 2))
    )
    answers = {wins: (1.0,) * wins + (0.0,) * (40 - wins) for wins in (10, 15, 16)}
    largest = largest.model_copy(update={"accuracy": 0.25, "answers": answers[10]})
    five, six = (other.model_copy(update={"accuracy": wins / 40, "answers": answers[wins]}) for wins in (15, 16))
    # Five wins and no loss have a chance of 1/32, less than 5 % for one candidate and more for two.
    again = [record.model_copy(update={"i": 90 + place}) for place, record in enumerate((largest, five, five))]
    for explored in ([largest, five], [largest, five, *again]):
        assert best_record([largest, five], explored=explored).choice_idx == five.choice_idx
    assert best_record([largest, five], explored=[largest, five, third]).choice_idx == (0, 0, 0, 0)
    assert best_record([largest, six], explored=[largest, six, third]).choice_idx == six.choice_idx


def test_a_reference_less_a_delta_is_not_missed_by_rounding(tmp_path: Path) -> None:
    record = run(tmp_path / "j", Separable(), "heuristic")[0]
    rule = BestRule(accuracy_delta=0.1, reference_accuracy=0.8)
    assert 0.8 - 0.1 > 0.7
    assert rule.accepts(record.model_copy(update={"accuracy": 0.7}), None)
    assert not rule.accepts(record.model_copy(update={"accuracy": 0.6999}), None)


def test_a_record_below_what_is_wanted_stays_in_the_race_while_more_rows_may_lift_it(tmp_path: Path) -> None:
    record, rule = run(tmp_path / "j", Separable(), "heuristic")[0], BestRule(min_accuracy=0.8)
    assert record.n_eval == 40
    for accuracy, ruled_out in ((0.9, False), (0.75, False), (0.5, True)):
        assert rule.rules_out(record.model_copy(update={"accuracy": accuracy}), None) is ruled_out


def test_what_is_not_known_of_a_record_keeps_no_limit(tmp_path: Path) -> None:
    record = run(tmp_path / "j", Separable(), "heuristic")[0]
    known = record.model_copy(update={"model_bytes": 100, "latency_ms": 2.0})
    for rule in (BestRule(max_bytes=100), BestRule(max_latency_ms=2.0)):
        assert rule.affords(known)
        assert not rule.affords(record)
    assert not BestRule(max_bytes=99).affords(known)
    assert not BestRule(max_latency_ms=1.9).affords(known)


def test_the_best_keeps_the_share_of_the_cost_whatever_else_is_limited() -> None:
    """Costs of each kind are of another size: mistaken for each other, they would let everything pass, or nothing."""
    scales = {"adapter_params": 1.0, "bytes": 1000.0, "latency": 0.001}

    def count(indices: Indices, cost: str = "adapter_params") -> float:
        return scales[cost] * (8 - sum(indices))

    grid, objective = Grid((3, 3)), SimpleNamespace(count=count, counter=SimpleNamespace(count=count))
    settings = replace(SMALL_SEARCH, max_cost_share=0.75, max_bytes=7000, max_latency_ms=0.0065)
    limit = make_limit(settings, objective, grid)
    assert limit is not None
    assert [limit.allows(indices) for indices in ((0, 0), (1, 0), (1, 1), (2, 2))] == [False, False, True, True]
    rule = limited_rule(BestRule(prefer="cheaper"), settings, limit)
    assert (rule.max_cost, rule.max_bytes, rule.max_latency_ms, rule.prefer) == (6.0, 7000, 0.0065, "cheaper")
    unlimited = replace(settings, max_cost_share=None)
    assert limited_rule(BestRule(), unlimited, make_limit(unlimited, objective, grid)).max_cost is None
