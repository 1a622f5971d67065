"""The search stage: from a super-adapter to the `search` artefact with `best.json`."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from search.document import Origin, describe_record
from search.exploration import explore
from search.front import BestRule, best_record, pareto_document, progression_rows
from search.journal import JOURNAL_FILE, Journal, Record
from search.measuring import build_objective
from search.opening import SearchableRun, SearchInputs, open_inputs, open_run
from search.plot import draw_pareto
from search.settings import SearchSettings, check_reference, check_split, recipe_rule, recipe_settings
from search.strategies.cost_limit import CostLimit
from search.strategies.grid import Grid
from search.strategies.strategy import Effort, make_strategy
from shearling.artefact import check_destination, write_artefact
from shearling.console import log, progress
from shearling.evaluation.precision import resolve_precision
from shearling.run import Run
from shearling.strict_json import write_document, write_json, write_text

SETTINGS_FILE = "settings.json"
BEST_FILE = "best.json"
PARETO_FILE = "pareto.json"
PROGRESSION_FILE = "progression.csv"


@dataclass(frozen=True)
class Searched:
    """A finished search."""

    path: Path
    records: list[Record]
    best: Record
    task: str
    best_rule: str


@dataclass(frozen=True)
class Explored:
    """What a search has evaluated.

    Attributes:
        task: that it was measured on.
        limit: what candidates might cost.
    """

    records: list[Record]
    task: str
    limit: CostLimit | None


def search_by_recipe(
    run: Run, *, settings: Mapping[str, Any], rule: Mapping[str, Any], force: bool = False
) -> Searched:
    """Search as the recipe of a run says.

    Args:
        run: with a super-adapter.
        settings: fields of `SearchSettings` that differ from the recipe.
        rule: fields of `BestRule` that differ from the recipe.
        force: replace a search that is there.

    Raises:
        ShearlingError: see `search`.
    """
    check_destination(run.search, force=force)
    opened = open_run(run)
    return _search(
        opened,
        replace(recipe_settings(opened.section), **settings),
        replace(recipe_rule(opened.section), **rule),
        force=force,
    )


def search(run: Run, settings: SearchSettings, rule: BestRule, *, force: bool = False) -> Searched:
    """Search, or continue an interrupted search with the same settings.

    Args:
        run: with a super-adapter.
        settings: of the search.
        rule: what the best sub-network must meet, and which is the best.
        force: replace a search that is there.

    Raises:
        UsageError: no sub-network is as cheap as the settings want it, or the rule's reference is a sub-network that
            the search will not evaluate.
        NoCandidate: no evaluated sub-network meets the constraints; the evaluations are kept for another try.
        OutputExists: there is a search, and `force` is false.
        ArtefactError: the run is incomplete or damaged.
    """
    check_destination(run.search, force=force)
    return _search(open_run(run), settings, rule, force=force)


def _search(opened: SearchableRun, settings: SearchSettings, rule: BestRule, *, force: bool) -> Searched:
    # Before an unfinished search with other settings is discarded.
    check_reference(settings, rule)
    check_split(settings)
    run, inputs = opened.run, open_inputs(opened, task=settings.task)
    with write_artefact(
        run.search, kind="search", parents=inputs.parents, seed=settings.seed, force=force, resumable=True
    ) as draft:
        _start_over_unless_same(draft.directory, settings, inputs)
        explored = _explore(opened, settings, inputs, draft.directory)
        rule = rule if explored.limit is None else replace(rule, max_cost=explored.limit.most)
        searched = Searched(
            run.search,
            explored.records,
            best_record(explored.records, rule),
            explored.task,
            rule.words(settings.cost),
        )
        _write(searched, opened, settings, draft.directory)
        draft.details |= {
            "settings": asdict(settings),
            "constraints": asdict(rule),
            "best_rule": searched.best_rule,
            "task": searched.task,
        }
        (draft.directory / SETTINGS_FILE).unlink()
    return searched


def _explore(opened: SearchableRun, settings: SearchSettings, inputs: SearchInputs, directory: Path) -> Explored:
    journal, grid = Journal(directory / JOURNAL_FILE), Grid.of(opened.space)
    measured = build_objective(settings, inputs)
    share, count = settings.max_cost_share, measured.objective.count
    limit = None if share is None else CostLimit.of_share(share, count, grid)
    effort = Effort(settings.evaluations, seed=settings.seed, population=settings.population, limit=limit)
    strategy = make_strategy(settings.algorithm, grid, effort)
    if journal.records:
        log.print(f"continuing after {len(journal.records)} evaluations")
    title = f"{settings.algorithm} on {measured.rows} {settings.split} rows of {measured.task}"
    with progress(title, total=strategy.planned) as advance:
        records = explore(
            strategy,
            measured.objective,
            journal,
            grid=grid,
            algorithm=settings.algorithm,
            seed=settings.seed,
            advance=advance,
        )
    return Explored(records, measured.task, limit)


def _write(searched: Searched, opened: SearchableRun, settings: SearchSettings, directory: Path) -> None:
    records, best = searched.records, searched.best
    origin = Origin(
        opened.adapter,
        opened.space,
        searched.path / JOURNAL_FILE,
        len(records),
        searched.task,
        searched.best_rule,
        settings.macs_seq_len,
        settings.split,
    )
    write_document(directory / BEST_FILE, describe_record(best, origin, location=searched.path))
    write_json(directory / PARETO_FILE, pareto_document(records))
    write_text(directory / PROGRESSION_FILE, _csv(progression_rows(records)))
    draw_pareto(records, best, directory, task=searched.task)


def _start_over_unless_same(directory: Path, settings: SearchSettings, inputs: SearchInputs) -> None:
    deciding = {**asdict(settings), "precision": resolve_precision(settings.precision), "evaluations": None}
    parents = {role: parent.sha256 for role, parent in inputs.parents.items()}
    text = json.dumps({"settings": deciding, "parents": parents}, indent=2)
    file = directory / SETTINGS_FILE
    if file.is_file() and file.read_text() == text:
        return
    if file.is_file():
        log.print("an unfinished search with other settings or inputs is discarded")
    shutil.rmtree(directory)
    directory.mkdir()
    write_text(file, text)


def _csv(rows: list[list[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
