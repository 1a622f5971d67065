"""The search stage: from a super-adapter to the `search` artefact with `best.json`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from search.document import Origin, describe_record
from search.estimates import Memory, plan_memory
from search.evidence import find_held_back
from search.examination import Examiner
from search.exploration import explore
from search.front import BestRule, best_record, find_largest, pareto_document, progression_rows
from search.frozen_model import FrozenModel, measure_frozen, stands_alone
from search.journal import JOURNAL_FILE, Journal, Record
from search.limits import check_params, find_table, limited_rule, make_limit
from search.measurements import Measurements
from search.measuring import MeasuredTask, WorkersObjective, build_objective, measured_precision, training_device
from search.objective import Objective
from search.opening import SearchableRun, SearchInputs, open_inputs, open_run
from search.piece_store import PIECES_FILE, PieceStore
from search.plot import draw_pareto
from search.race import longest_race, race
from search.resumption import SETTINGS_FILE, Consent, question_of, resume
from search.settings import SearchSettings, check_split, chosen_rule, recipe_settings, settle, settled_cost
from search.strategies.anchored import Anchored, anchors_of
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Effort, Strategy, make_strategy
from search.uniform import uniform_mixtures
from search.view.page import Subject
from search.view.watch import Watch, watching
from shearling.artefact import check_destination, write_artefact
from shearling.console import log, progress
from shearling.elastic.subnet import Subnet
from shearling.executors.executor import Workforce, check_workforce, limit_threads, make_executor
from shearling.resources import Estimate, in_words, require
from shearling.run import Run
from shearling.strict_json import write_document, write_json, write_text

BEST_FILE = "best.json"
PARETO_FILE = "pareto.json"
PROGRESSION_FILE = "progression.csv"


LOCAL = Workforce()


def refuse(_lost: str) -> bool:
    """Consents to nothing."""
    return False


@dataclass(frozen=True)
class Conduct:
    """How a search is carried out; makes no difference to what is found."""

    force: bool
    workforce: Workforce
    consent: Consent
    memory: Memory = "auto"


@dataclass(frozen=True)
class Searched:
    """A finished search.

    Attributes:
        records: of the journal.
        best: the record of the best sub-network, on all rows that choose.
        middle: the middle sub-network.
        task: that sub-networks were measured on.
        best_rule: in words.
        chosen: zeros and formats of the layers of the best, in words, where there was a choice.
        exported_as: options of `python -m export` for the form that was searched for.
        frozen: the model without an adapter, where it has learnt the task itself.
    """

    path: Path
    records: list[Record]
    best: Record
    middle: Indices
    task: str
    best_rule: str
    chosen: tuple[str, ...] = ()
    exported_as: tuple[str, ...] = ()
    frozen: FrozenModel | None = None

    @property
    def explored(self) -> list[Record]:
        """Those that the algorithm asked for, all on the same rows."""
        return [record for record in self.records if record.part == "explored"]


def _exported_as(settings: SearchSettings) -> tuple[str, ...]:
    form = () if settings.weight_format is None else ("--weight-format", settings.weight_format)
    return (*form, "--sparse-kernel", "openvino") if settings.sparse_kernel else form


@dataclass(frozen=True)
class Preparation:
    """What a search is made of.

    Attributes:
        strategy: asks for the anchors first.
        anchors: sub-networks that are tried whatever the algorithm asks for.
        rule: with the limit on the cost.
    """

    measured: MeasuredTask
    grid: Grid
    strategy: Strategy
    anchors: tuple[Indices, ...]
    rule: BestRule


def search_by_recipe(
    run: Run,
    *,
    settings: Mapping[str, Any],
    rule: Mapping[str, Any],
    force: bool = False,
    workforce: Workforce = LOCAL,
    consent: Consent = refuse,
    memory: Memory = "auto",
) -> Searched:
    """Search as the recipe of a run says.

    Args:
        run: with a super-adapter.
        settings: fields of `SearchSettings` that differ from the recipe.
        rule: fields of `BestRule` that differ from the recipe.
        force: replace a search that is there.
        workforce: see `search`.
        consent: see `search`.
        memory: see `search`.

    Raises:
        ShearlingError: see `search`.
    """
    check_destination(run.search, kind="search", force=force)
    check_workforce(workforce)
    opened = open_run(run)
    return _search(
        opened,
        replace(recipe_settings(opened.section), **settings),
        chosen_rule(opened.section, rule),
        Conduct(force=force, workforce=workforce, consent=consent, memory=memory),
    )


def estimate_by_recipe(
    run: Run, *, settings: Mapping[str, Any], rule: Mapping[str, Any], workforce: Workforce, memory: Memory
) -> Estimate:
    """What `search_by_recipe` with these arguments will take; nothing is evaluated.

    Raises:
        ShearlingError: see `search`.
    """
    check_workforce(workforce)
    opened = open_run(run)
    chosen = replace(recipe_settings(opened.section), **settings)
    opened = _mixed(opened, chosen)
    settled = _settle(opened, chosen, chosen_rule(opened.section, rule))
    inputs = open_inputs(opened, task=settled.task, latency=find_table(run, settled))
    return plan_memory(inputs, settled, workforce, memory).estimate


def search(
    run: Run,
    settings: SearchSettings,
    rule: BestRule,
    *,
    force: bool = False,
    workforce: Workforce = LOCAL,
    consent: Consent = refuse,
    memory: Memory = "auto",
) -> Searched:
    """Search, or continue an interrupted search with the same settings.

    Args:
        run: with a super-adapter.
        settings: of the search.
        rule: what the best sub-network must meet, and which is the best.
        force: replace a search that is there.
        workforce: what measures candidates; makes no difference to what is found.
        consent: asked before evaluations of an unfinished search are left behind.
        memory: lean takes less of it, and more time; auto does so where nothing else fits. The numbers are the same.

    Raises:
        UsageError: settings contradict each other, or there is no consent.
        NoCandidate: no sub-network meets the constraints: none of the space, then nothing was evaluated; or none that
            was evaluated, then the evaluations are kept for another try.
        OutputExists: there is a search, and `force` is false.
        ArtefactError: the run is incomplete or damaged.
        EnvironmentFault: workers are lost again and again, or have other versions than this process.
    """
    check_destination(run.search, kind="search", force=force)
    check_workforce(workforce)
    return _search(
        open_run(run), settings, rule, Conduct(force=force, workforce=workforce, consent=consent, memory=memory)
    )


def _search(opened: SearchableRun, settings: SearchSettings, rule: BestRule, conduct: Conduct) -> Searched:
    opened = _mixed(opened, settings)
    settings = _settle(opened, settings, rule)
    settings = replace(settings, precision=measured_precision(settings.precision, conduct.workforce))
    run, inputs = opened.run, open_inputs(opened, task=settings.task, latency=find_table(opened.run, settings))
    plan = plan_memory(inputs, settings, conduct.workforce, conduct.memory)
    how = ", merged weights made anew" if plan.lean else ""
    log.print(f"expected: {in_words(plan.estimate.memory_bytes)} of memory{how}")
    if conduct.memory == "lean" and not plan.lean:
        log.print("--memory lean changes nothing here: weights that are rounded are held in float32")
    require(plan.estimate, run.search, remedy=plan.remedy)
    if inputs.latency is not None:
        log.print(f"latencies are predicted for: {inputs.latency}")
    with write_artefact(
        run.search,
        kind="search",
        parents=inputs.parents,
        seed=settings.seed,
        force=conduct.force,
        resumable=True,
        # All that they hold of a finished search is in the journal.
        scratch=(SETTINGS_FILE, PIECES_FILE),
    ) as draft:
        device = training_device() if conduct.workforce.entry.in_process else None
        measured = build_objective(settings, inputs, device=device, lean=plan.lean)
        prepared = _prepare(opened, settings, measured, rule)
        question = question_of(settings, inputs, measured.sha256)
        resume(
            draft.directory,
            settings,
            inputs,
            question=question,
            anchors=prepared.anchors,
            planned=prepared.strategy.planned,
            consent=conduct.consent,
        )
        journal = Journal(draft.directory / JOURNAL_FILE)
        store = PieceStore(draft.directory / PIECES_FILE, question, prepared.measured.split)
        with _measuring(prepared.measured, settings, inputs, conduct.workforce, store, lean=plan.lean) as measure:
            watch = _watch(opened, prepared, settings, journal)
            with watching(watch, opened.run.search_page):
                best, words = _choose(prepared, settings, journal, measure, watch)
                frozen = _measure_frozen(best, inputs, prepared, journal, measure, watch)
        task = prepared.measured.task
        searched = Searched(run.search, journal.records, best, prepared.grid.heuristic, task, words)
        described = _write(searched, opened, settings, draft.directory)
        searched = replace(
            searched,
            chosen=() if described.mixture is None else tuple(described.mixture.words),
            exported_as=_exported_as(settings),
            frozen=frozen,
        )
        watch.finish(draft.directory, best=best)
        draft.details |= {
            "settings": asdict(settings),
            "constraints": asdict(prepared.rule),
            "best_rule": searched.best_rule,
            "task": searched.task,
            "frozen": None if frozen is None else frozen.document(),
        }
    watch.lead_to(run.search)
    return searched


@contextmanager
def _measuring(
    measured: MeasuredTask,
    settings: SearchSettings,
    inputs: SearchInputs,
    workforce: Workforce,
    store: PieceStore,
    *,
    lean: bool,
) -> Iterator[Measurements]:
    """What measures candidates, for as long as the search goes on."""
    objective = measured.objective
    if workforce.entry.in_process:
        limit_threads(workforce.threads)
        executor = make_executor(workforce, lambda: objective.measure)
    else:
        opened = WorkersObjective.of(settings, inputs, workforce, task_sha256=measured.sha256, lean=lean)
        executor = make_executor(workforce, opened)
        objective.forget_weights()
        log.print(f"measured by {executor.workers} workers: {workforce.entry.summary}")
    try:
        yield Measurements(executor, store, objective.figures)
    finally:
        executor.close()
        objective.release()


def _mixed(opened: SearchableRun, settings: SearchSettings) -> SearchableRun:
    return opened.mixed(ratios=settings.ratios, formats=settings.layer_formats)


def _settle(opened: SearchableRun, settings: SearchSettings, rule: BestRule) -> SearchSettings:
    check_split(settings, opened.adapter)
    return settle(settings, rule, opened.space, sparse="sparse" in opened.adapter.manifest.parents)


def _prepare(opened: SearchableRun, settings: SearchSettings, measured: MeasuredTask, rule: BestRule) -> Preparation:
    grid = Grid.of(opened.space)
    limit = make_limit(settings, measured.objective, grid)
    check_params(rule, measured.objective, grid)
    effort = Effort(settings.evaluations, seed=settings.seed, population=settings.population, limit=limit)
    strategy = make_strategy(settings.algorithm, grid, effort)
    # Who asks for one sub-network gets that one, and beside it no more than the rule needs.
    anchors: tuple[Indices, ...] = (grid.maximal,) if rule.needs_largest else ()
    if strategy.planned > 1:
        anchors = tuple(dict.fromkeys((*anchors_of(grid, limit), *uniform_mixtures(opened.space, limit))))
    return Preparation(measured, grid, Anchored(strategy, anchors), anchors, limited_rule(rule, settings, limit))


def _watch(opened: SearchableRun, prepared: Preparation, settings: SearchSettings, journal: Journal) -> Watch:
    subject = Subject(
        title=f"{settings.algorithm} on {opened.run.path.resolve().name}",
        task=prepared.measured.task,
        groups=tuple(group.id for group in opened.space.groups),
        grid=prepared.grid,
    )
    split = prepared.measured.split
    return Watch(opened.run.search_page, subject, journal, split, planned=prepared.strategy.planned)


def _choose(
    prepared: Preparation, settings: SearchSettings, journal: Journal, measure: Objective, watch: Watch
) -> tuple[Record, str]:
    """Explore, race, and measure what was chosen, and the largest, on the rows that are held back.

    Returns:
        The best, and by which rule, in words.
    """
    measured, rule = prepared.measured, prepared.rule
    split = measured.split
    examiner = Examiner(measure, journal, split)
    if journal.records:
        log.print(f"continuing after {len(journal.records)} evaluations")
    title = f"{settings.algorithm} on {split.parts[0]} {settings.split} rows of {measured.task}"
    watch.enter(title)
    with progress(title, total=prepared.strategy.planned) as advance:
        explored = explore(
            prepared.strategy,
            examiner.explore,
            journal,
            grid=prepared.grid,
            algorithm=settings.algorithm,
            seed=settings.seed,
            advance=watch.following(advance),
        )
    steps = longest_race(explored, rule, looks=len(split.parts) - 1)
    title = f"what may be the best on up to {split.choosing} rows"
    watch.enter(title)
    with progress(title, total=steps) as advance:
        finalists = race(explored, rule, examiner, advance=watch.following(advance))
    best = best_record(finalists, rule, explored=explored)
    largest = find_largest(finalists)
    watch.enter(f"{best.id} on {len(split.held_back)} rows that are held back")
    examiner.hold_against([best] if largest in (None, best) else [best, largest])
    compared = largest is not None and rule.accepts(largest, largest)
    return best, rule.words(settled_cost(settings), compared=compared)


def _measure_frozen(
    best: Record,
    inputs: SearchInputs,
    prepared: Preparation,
    journal: Journal,
    measure: Measurements,
    watch: Watch,
) -> FrozenModel | None:
    """What the best is worth beside the frozen model, on the rows that are held back; None where there are none, or
    the frozen model is no alternative.
    """
    held_back = find_held_back(best, journal.records)
    if held_back is None or not stands_alone(inputs):
        return None
    watch.enter(f"the frozen model on {held_back.n_eval} rows that are held back")
    return measure_frozen(held_back, inputs.frozen.path, measure.outcomes, prepared.measured.split.held_back)


def _write(searched: Searched, opened: SearchableRun, settings: SearchSettings, directory: Path) -> Subnet:
    explored, best = searched.explored, searched.best
    origin = Origin(
        opened.adapter,
        opened.space,
        searched.path / JOURNAL_FILE,
        searched.records,
        searched.task,
        searched.best_rule,
        settings.macs_seq_len,
        settings.split,
        opened.mixture,
    )
    described = describe_record(best, origin, location=searched.path)
    write_document(directory / BEST_FILE, described)
    write_json(directory / PARETO_FILE, pareto_document(explored))
    write_text(directory / PROGRESSION_FILE, _csv(progression_rows(explored)))
    held_back = find_held_back(best, searched.records)
    draw_pareto(explored, best, held_back, directory, task=searched.task)
    return described


def _csv(rows: list[list[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
