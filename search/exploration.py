"""The loop of a search: ask, measure what is new, journal, tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from search.cost_words import COSTS
from search.front import dominates
from search.journal import Journal, Record
from search.objective import CandidateFigures
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import DEFECT, Strategy
from shearling.console import Advance
from shearling.errors import ArtefactMismatch, ShearlingError

ANEW = (
    "It was made with other settings or library versions: remove this file and search again; what was measured is kept "
    "in another one, and counts"
)
"""What to do about a journal that another search made."""

Explore = Callable[[Sequence[Indices]], Iterator[CandidateFigures]]
"""Measures candidates, all on the same rows; gives their figures in that order, each as soon as it is known."""


def explore(
    strategy: Strategy,
    measure: Explore,
    journal: Journal,
    *,
    grid: Grid,
    algorithm: str,
    seed: int,
    advance: Advance,
) -> list[Record]:
    """Run a strategy to its end, continuing the journal.

    The records that the journal holds are told to the strategy instead of being measured, so that a resumed search
    takes the same path as an uninterrupted one.

    Args:
        strategy: fresh; deterministic in its seed.
        measure: measures candidates.
        journal: empty, or of an interrupted search with the same strategy.
        grid: the candidates that there are.
        algorithm: name of the strategy, for the records.
        seed: of the strategy, for the records.
        advance: called after each record.

    Returns:
        All records of the exploration.

    Raises:
        ArtefactMismatch: the journal was made by another search.
        ShearlingError: the strategy asks for what is no candidate, or for more than it planned.
    """
    position = generation = 0
    # Read once: it is a promise, not a property that may grow.
    planned = strategy.planned
    ids: dict[Indices, str] = {}
    while candidates := _ask(strategy, grid, algorithm=algorithm):
        if position + len(candidates) > planned:
            raise ShearlingError(
                f"the search algorithm {algorithm} planned {planned} evaluations, repeats counted, and asked for "
                f"{position + len(candidates)}",
                remedy=DEFECT,
            )
        parent = _parent_id(strategy.parent, ids, algorithm=algorithm)
        # All that this generation has not in the journal, at once: there may be a worker for each.
        left = candidates[max(0, len(journal.explored) - position) :]
        unknown = [indices for indices in dict.fromkeys(left) if journal.find(indices) is None]
        measured = measure(unknown)
        for indices in candidates:
            if position < len(journal.explored):
                record = journal.explored[position]
                _check_replay(record, indices, journal)
            else:
                record = _record(
                    indices, measured, journal, algorithm=algorithm, seed=seed, generation=generation, parent=parent
                )
                journal.append(record)
            ids.setdefault(indices, record.id)
            position += 1
            advance(note=_note(journal.explored[:position]))
        strategy.tell([record.trial for record in journal.explored[position - len(candidates) : position]])
        generation += 1
    if position < len(journal.explored):
        raise ArtefactMismatch(
            f"holds {len(journal.explored)} evaluations, this search ends after {position}",
            where=journal.path,
            remedy=ANEW,
        )
    return journal.explored


def _record(
    indices: Indices,
    measured: Iterator[CandidateFigures],
    journal: Journal,
    *,
    algorithm: str,
    seed: int,
    generation: int,
    parent: str | None,
) -> Record:
    number = len(journal.explored)
    name = f"{algorithm}-{number:04d}"
    facts: dict[str, Any] = {"i": len(journal.records), "id": name, "parent": parent, "generation": generation}
    known = journal.find(indices)
    if known is not None:
        return known.model_copy(
            update={**facts, "seconds": 0.0, "cached": True, "pareto": _is_pareto(known, journal.explored)}
        )
    record = Record(
        **facts, **vars(next(measured)), algorithm=algorithm, seed=seed, choice_idx=indices, cached=False, pareto=True
    )
    return record.model_copy(update={"pareto": _is_pareto(record, journal.explored)})


def _is_pareto(record: Record, earlier: Sequence[Record]) -> bool:
    return not any(dominates(other, record) for other in earlier)


def _ask(strategy: Strategy, grid: Grid, *, algorithm: str) -> Sequence[Indices]:
    """A strategy may come from another package: what it does wrong is not to be blamed on the files of the run."""
    candidates: object = strategy.ask()
    if not isinstance(candidates, Sequence):
        raise ShearlingError(
            f"the search algorithm {algorithm} asked with a {type(candidates).__name__}, expected a list of candidates",
            remedy=DEFECT,
        )
    for candidate in candidates:
        if not grid.holds(candidate):
            raise ShearlingError(
                f"the search algorithm {algorithm} asked for {candidate!r}, which the search space does not hold: "
                f"a candidate is a tuple of {len(grid.sizes)} integers, each below the number of values of its group",
                remedy=DEFECT,
            )
    return candidates


def _parent_id(parent: Indices | None, ids: Mapping[Indices, str], *, algorithm: str) -> str | None:
    if parent is None:
        return None
    if not isinstance(parent, tuple) or parent not in ids:
        raise ShearlingError(
            f"the search algorithm {algorithm} derived candidates from {parent!r}, which it has not asked for before",
            remedy=DEFECT,
        )
    return ids[parent]


def _check_replay(record: Record, indices: Indices, journal: Journal) -> None:
    if record.choice_idx != indices:
        raise ArtefactMismatch(
            f"row {record.i} holds another candidate than this search asks for",
            where=journal.path,
            remedy=ANEW,
        )


def _note(records: Sequence[Record]) -> str:
    best = max(records, key=lambda record: record.trial.merit)
    words = COSTS[best.cost_kind]
    return f"best {best.accuracy:.1%}" + ("" if words.field is None else f" with {words.show(best.cost)}")
