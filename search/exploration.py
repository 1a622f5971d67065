"""The loop of a search: ask, measure what is new, journal, tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from search.cost_words import COSTS
from search.front import dominates
from search.journal import Journal, Record
from search.objective import Objective
from search.strategies.grid import Indices
from search.strategies.strategy import Strategy
from shearling.console import Advance
from shearling.errors import ArtefactMismatch


def explore(
    strategy: Strategy, objective: Objective, journal: Journal, *, algorithm: str, seed: int, advance: Advance
) -> list[Record]:
    """Run a strategy to its end, continuing the journal.

    The records that the journal holds are told to the strategy instead of being measured, so that a resumed search
    takes the same path as an uninterrupted one.

    Args:
        strategy: fresh; deterministic in its seed.
        objective: measures candidates.
        journal: empty, or of an interrupted search with the same strategy.
        algorithm: name of the strategy, for the records.
        seed: of the strategy, for the records.
        advance: called after each record.

    Returns:
        All records.

    Raises:
        ArtefactMismatch: the journal was made by another search.
    """
    position = generation = 0
    ids: dict[Indices, str] = {}
    while candidates := strategy.ask():
        parent = None if strategy.parent is None else ids[strategy.parent]
        for indices in candidates:
            if position < len(journal.records):
                record = journal.records[position]
                _check_replay(record, indices, journal)
            else:
                record = _evaluate(
                    indices, objective, journal, algorithm=algorithm, seed=seed, generation=generation, parent=parent
                )
                journal.append(record)
            ids.setdefault(indices, record.id)
            position += 1
            advance(note=_note(journal.records[:position]))
        strategy.tell([record.trial for record in journal.records[position - len(candidates) : position]])
        generation += 1
    if position < len(journal.records):
        raise ArtefactMismatch(
            f"holds {len(journal.records)} evaluations, this search ends after {position}", where=journal.path
        )
    return journal.records


def _evaluate(
    indices: Indices,
    objective: Objective,
    journal: Journal,
    *,
    algorithm: str,
    seed: int,
    generation: int,
    parent: str | None,
) -> Record:
    number = len(journal.records)
    facts: dict[str, Any] = {"i": number, "id": f"{algorithm}-{number:04d}", "parent": parent, "generation": generation}
    known = journal.find(indices)
    if known is not None:
        return known.model_copy(
            update={**facts, "seconds": 0.0, "cached": True, "pareto": _is_pareto(known, journal.records)}
        )
    measured = dataclasses.asdict(objective.measure(indices))
    record = Record(**facts, **measured, algorithm=algorithm, seed=seed, choice_idx=indices, cached=False, pareto=True)
    return record.model_copy(update={"pareto": _is_pareto(record, journal.records)})


def _is_pareto(record: Record, earlier: Sequence[Record]) -> bool:
    return not any(dominates(other, record) for other in earlier)


def _check_replay(record: Record, indices: Indices, journal: Journal) -> None:
    if record.choice_idx != indices:
        raise ArtefactMismatch(
            f"row {record.i} holds another candidate than this search asks for",
            where=journal.path,
            remedy="It was made with other settings or library versions: remove the directory and search again",
        )


def _note(records: Sequence[Record]) -> str:
    best = max(records, key=lambda record: record.trial.merit)
    return f"best {best.accuracy:.1%} with {COSTS[best.cost_kind].show(best.cost)}"
