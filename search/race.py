"""The race: candidates that may still be the best are measured on more rows, the others are not.

All candidates start on the first part of the rows that choose. Where accuracy is preferred, the better half goes on to
the next part, and so on (successive halving). Where something cheaper is asked for, the cheapest that may still be
accurate enough goes on to all rows, then the next cheapest, until one of them is. The largest sub-network always goes
on, since the others are compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from search.examination import Examiner
from search.front import BestRule, distinct, find_largest
from search.journal import Record
from shearling.console import Advance


def race(explored: Sequence[Record], rule: BestRule, examiner: Examiner, *, advance: Advance) -> list[Record]:
    """Measure candidates on more rows, as far as they may be the best.

    Args:
        explored: records on the first part of the rows that choose.
        rule: says which is the best.
        examiner: measures and keeps.
        advance: called after each measurement.

    Returns:
        Those measured on all rows that choose, the largest sub-network among them if it was explored.
    """
    largest = find_largest(explored)
    contenders = _contenders(explored, rule)
    reference = [] if largest is None else [largest]
    if rule.prefers_cheaper:
        reference = [_extend(record, examiner, advance) for record in reference]
        return [*reference, *_cheapest(contenders, reference, rule, examiner, advance)]
    for rows in examiner.split.parts[1:]:
        contenders = sorted(contenders, key=rule.rank)[: max(1, len(contenders) // 2)]
        # Together, so that workers have all of it to do at once.
        raced = []
        for record in examiner.extend([*reference, *contenders], rows):
            raced.append(record)
            advance()
        reference, contenders = raced[: len(reference)], raced[len(reference) :]
    return [*reference, *contenders]


def longest_race(explored: Sequence[Record], rule: BestRule, *, looks: int) -> int:
    """The most measurements that a race takes.

    Args:
        explored: what is raced.
        rule: says which is the best.
        looks: parts of the rows that choose, the first not counted.
    """
    count, reference = len(_contenders(explored, rule)), 0 if find_largest(explored) is None else looks
    if rule.prefers_cheaper:
        return reference + count * looks
    return reference + sum(max(min(1, count), count >> look) for look in range(1, looks + 1))


def _contenders(explored: Sequence[Record], rule: BestRule) -> list[Record]:
    return [record for record in distinct(explored) if any(record.choice_idx) and rule.affords(record)]


def _cheapest(
    contenders: Sequence[Record], reference: Sequence[Record], rule: BestRule, examiner: Examiner, advance: Advance
) -> list[Record]:
    largest = find_largest(reference)
    for contender in sorted(contenders, key=rule.rank):
        record = _while_plausible(contender, largest, rule, examiner, advance)
        if record is not None and rule.accepts(record, largest):
            return [record]
    return []


def _while_plausible(
    record: Record, largest: Record | None, rule: BestRule, examiner: Examiner, advance: Advance
) -> Record | None:
    for rows in examiner.split.parts[1:]:
        if rule.rules_out(record, largest):
            return None
        (record,) = examiner.extend([record], rows)
        advance()
    return record


def _extend(record: Record, examiner: Examiner, advance: Advance) -> Record:
    for rows in examiner.split.parts[1:]:
        (record,) = examiner.extend([record], rows)
        advance()
    return record
