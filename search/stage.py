"""The search stage: from a super-adapter to the `search` artefact with `best.json`."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from search.exploration import explore
from search.front import BestRule, best_record, pareto_document, progression_rows
from search.journal import JOURNAL_FILE, Journal, Record
from search.objective import SubnetObjective
from search.plot import draw_pareto
from search.strategies.cost_limit import Budget
from search.strategies.grid import Grid
from search.strategies.registry import make_strategy
from search.strategies.strategy import Algorithm, Cost
from shearling.artefact import Artefact, check_destination, open_artefact, write_artefact
from shearling.console import log, progress
from shearling.elastic.search_space import SEARCH_SPACE_FILE, SearchSpace, read_search_space
from shearling.elastic.subnet import Metrics, Provenance, Subnet, describe_subnet
from shearling.errors import ArtefactMismatch, UsageError
from shearling.evaluation.lm_eval_task import answer_task
from shearling.evaluation.precision import Precision, resolve_precision
from shearling.recipe import SearchSection
from shearling.run import Run, open_frozen
from shearling.strict_json import write_document, write_json, write_text

if TYPE_CHECKING:
    from shearling.elastic.super_network import SuperNetwork
    from shearling.evaluation.classification import ClassifierEvaluator
    from shearling.evaluation.evaluator import Evaluation, Evaluator

SETTINGS_FILE = "settings.json"
BEST_FILE = "best.json"
PARETO_FILE = "pareto.json"
PROGRESSION_FILE = "progression.csv"


@dataclass(frozen=True)
class SearchSettings:
    """What decides the outcome of a search; defaults come from the recipe of the run.

    Attributes:
        task: a harness task to optimise for; None is the task of the run.
        evaluations: budget; a search that was interrupted may be continued with a larger one.
        limit: validation rows of an evaluation.
        cost: what to save, beside accuracy.
        macs_seq_len: tokens of the forward whose MACs are counted or whose time is taken.
        max_cost_share: most that a candidate may cost, as a share of the largest one.
    """

    algorithm: Algorithm
    evaluations: int
    population: int
    seed: int
    limit: int | None
    task: str | None
    batch_size: int
    precision: Precision
    cost: Cost = "adapter_params"
    macs_seq_len: int = 256
    max_cost_share: float | None = None


Constraints = BestRule
"""What the best sub-network must meet, and by which rule it is the best."""


@dataclass(frozen=True)
class Origin:
    """Where a record comes from, for its document."""

    journal: Path
    task: str
    best_rule: str
    macs_seq_len: int | None


@dataclass(frozen=True)
class Searched:
    """A finished search."""

    path: Path
    records: list[Record]
    best: Record
    task: str
    best_rule: str


def recipe_settings(run: Run) -> SearchSettings:
    """The settings that the recipe of a run gives.

    Raises:
        ArtefactError: the super-adapter is missing or damaged.
    """
    section = _recipe_section(run)
    return SearchSettings(
        algorithm=section.algorithm,
        evaluations=section.evaluations,
        population=section.population,
        seed=section.seed,
        limit=section.limit,
        task=None,
        batch_size=section.batch_size,
        precision=section.precision,
        cost=section.cost,
        macs_seq_len=section.macs_seq_len,
        max_cost_share=section.max_cost_share,
    )


def recipe_rule(run: Run) -> BestRule:
    """The rule for the best sub-network that the recipe of a run gives.

    Raises:
        ArtefactError: the super-adapter is missing or damaged.
    """
    section = _recipe_section(run)
    return BestRule(accuracy_delta=section.accuracy_delta, reference_accuracy=section.reference_accuracy)


def _recipe_section(run: Run) -> SearchSection:
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    return SearchSection.model_validate(adapter.manifest.details.get("search") or {})


def search(run: Run, settings: SearchSettings, constraints: Constraints, *, force: bool = False) -> Searched:
    """Search, or continue an interrupted search with the same settings.

    Args:
        run: with a super-adapter.
        settings: of the search.
        constraints: on the best sub-network.
        force: replace a search that is there.

    Raises:
        UsageError: no sub-network is as cheap as the settings want it.
        NoCandidate: no evaluated sub-network meets the constraints; the evaluations are kept for another try.
        OutputExists: there is a search, and `force` is false.
        ArtefactError: the run is incomplete or damaged.
    """
    check_destination(run.search, force=force)
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    parents = {"super_adapter": adapter, **_frozen(adapter), **_task(run, settings, adapter)}
    space = read_search_space(adapter.path / SEARCH_SPACE_FILE)
    with write_artefact(
        run.search, kind="search", parents=parents, seed=settings.seed, force=force, resumable=True
    ) as draft:
        _start_over_unless_same(draft.directory, settings, parents)
        records, task, budget = _explore(run, settings, parents, space, draft.directory)
        constraints = constraints if budget is None else replace(constraints, max_cost=budget.most)
        best, words = best_record(records, constraints), constraints.words(settings.cost)
        origin = Origin(run.search / JOURNAL_FILE, task, words, settings.macs_seq_len)
        subnet = describe_record(best, records, adapter, space, location=run.search, origin=origin)
        write_document(draft.directory / BEST_FILE, subnet)
        write_json(draft.directory / PARETO_FILE, pareto_document(records))
        write_text(draft.directory / PROGRESSION_FILE, _csv(progression_rows(records)))
        draw_pareto(records, best, draft.directory, task=task)
        draft.details |= {
            "settings": asdict(settings),
            "constraints": asdict(constraints),
            "best_rule": words,
            "task": task,
        }
        (draft.directory / SETTINGS_FILE).unlink()
    return Searched(run.search, records, best, task, words)


def describe_record(
    record: Record, records: list[Record], adapter: Artefact, space: SearchSpace, *, location: Path, origin: Origin
) -> Subnet:
    """A row of the journal as a complete sub-network document.

    Args:
        record: the row.
        records: all rows.
        adapter: the super-adapter that was searched.
        space: its search space.
        location: the directory that the document will stand in.
        origin: the search that the row belongs to.
    """
    metrics = Metrics(
        task=origin.task,
        n=record.n_eval,
        accuracy=record.accuracy,
        accuracy_stderr=record.accuracy_stderr,
        adapter_params=record.adapter_params,
        nonzero_params=record.nonzero_params,
        parameters=record.parameters,
        macs_m=record.macs_m,
        macs_seq_len=None if record.macs_m is None else origin.macs_seq_len,
        latency_ms=record.latency_ms,
        seconds=record.seconds,
    )
    provenance = Provenance(
        algorithm=record.algorithm,
        seed=record.seed,
        evaluations=len(records),
        results_file=_relative(origin.journal, location),
        row=record.i,
        best_rule=origin.best_rule,
    )
    choice = space.decode(record.choice_idx)
    return describe_subnet(
        adapter, choice, subnet_id=record.id, location=location, metrics=metrics, provenance=provenance
    )


def _explore(
    run: Run, settings: SearchSettings, parents: dict[str, Artefact], space: SearchSpace, directory: Path
) -> tuple[list[Record], str, Budget | None]:
    journal, grid = Journal(directory / JOURNAL_FILE), Grid.of(space)
    objective, task, rows = _objective(run, settings, parents)
    budget = (
        None if settings.max_cost_share is None else Budget.of_share(settings.max_cost_share, objective.count, grid)
    )
    strategy = make_strategy(
        settings.algorithm,
        grid,
        evaluations=settings.evaluations,
        population=settings.population,
        seed=settings.seed,
        budget=budget,
    )
    if journal.records:
        log.print(f"continuing after {len(journal.records)} evaluations")
    title = f"{settings.algorithm} on {rows} validation rows of {task}"
    with progress(title, total=strategy.planned) as advance:
        records = explore(
            strategy, objective, journal, algorithm=settings.algorithm, seed=settings.seed, advance=advance
        )
    return records, task, budget


def _objective(run: Run, settings: SearchSettings, parents: dict[str, Artefact]) -> tuple[SubnetObjective, str, int]:
    frozen = parents["sparse"] if "sparse" in parents else parents["base"]
    make = _classifier_evaluation if "classes" in frozen.manifest.details else _harness_evaluation
    evaluator, network, evaluate = make(run, settings, parents, frozen)
    objective = SubnetObjective(network, evaluate, cost=settings.cost, tokens=settings.macs_seq_len)
    return objective, evaluator.task, evaluator.rows


def _harness_evaluation(
    run: Run, settings: SearchSettings, parents: dict[str, Artefact], frozen: Artefact
) -> tuple[Evaluator | ClassifierEvaluator, SuperNetwork, Callable[[], Evaluation]]:
    from shearling.elastic.super_network import assemble_super_network
    from shearling.evaluation.evaluator import Evaluator, torch_scorer

    if settings.task is None:
        name = str(parents["task"].manifest.details["name"])
        evaluator = Evaluator(name, split="validation", include_path=run.task, limit=settings.limit)
    else:
        evaluator = Evaluator(settings.task, split="validation", limit=settings.limit)
    network = assemble_super_network(frozen, parents["super_adapter"])
    scorer = torch_scorer(
        network.model, network.tokenizer, batch_size=settings.batch_size, precision=settings.precision
    )
    return evaluator, network, partial(evaluator.measure, scorer)


def _classifier_evaluation(
    run: Run, settings: SearchSettings, parents: dict[str, Artefact], frozen: Artefact
) -> tuple[Evaluator | ClassifierEvaluator, SuperNetwork, Callable[[], Evaluation]]:
    from shearling.elastic.super_network import assemble_super_network
    from shearling.evaluation.classification import ClassifierEvaluator, TorchClassifier

    if settings.task is not None:
        raise UsageError(
            "a classifier answers the task of its run alone", where="--task", remedy="Leave the option out"
        )
    details = parents["task"].manifest.details
    evaluator = ClassifierEvaluator(
        run.task, str(details["name"]), split="validation", limit=settings.limit, batch_size=settings.batch_size
    )
    network = assemble_super_network(frozen, parents["super_adapter"])
    bf16 = resolve_precision(settings.precision) == "bf16"
    scorer = TorchClassifier(network.model, network.tokenizer, max_length=evaluator.max_length, bf16=bf16)
    return evaluator, network, partial(evaluator.measure, scorer)


def _frozen(adapter: Artefact) -> dict[str, Artefact]:
    frozen = open_frozen(adapter)
    return {frozen.manifest.kind: frozen}


def _task(run: Run, settings: SearchSettings, adapter: Artefact) -> dict[str, Artefact]:
    if settings.task is not None:
        return {}
    # The validation split alone: a search must work the same with the test rows absent.
    listed = open_artefact(run.task, kind="task", only=())
    if adapter.manifest.parents["task"] != listed.sha256:
        # Its validation rows may be what the adapter has learnt.
        raise ArtefactMismatch(
            "the super-adapter was trained on another task",
            where=run.task,
            remedy="Train again, or name a task with --task",
        )
    name = str(listed.manifest.details["name"])
    return {
        "task": open_artefact(
            run.task, kind="task", only=("validation.jsonl", f"{answer_task(name, 'validation')}.yaml")
        )
    }


def _start_over_unless_same(directory: Path, settings: SearchSettings, parents: dict[str, Artefact]) -> None:
    deciding = {**asdict(settings), "precision": resolve_precision(settings.precision), "evaluations": None}
    inputs = json.dumps(
        {"settings": deciding, "parents": {role: parent.sha256 for role, parent in parents.items()}}, indent=2
    )
    file = directory / SETTINGS_FILE
    if file.is_file() and file.read_text() == inputs:
        return
    if file.is_file():
        log.print("an unfinished search with other settings or inputs is discarded")
    shutil.rmtree(directory)
    directory.mkdir()
    write_text(file, inputs)


def _csv(rows: list[list[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _relative(path: Path, location: Path) -> str:
    return Path(os.path.relpath(path.resolve(), location.resolve())).as_posix()
