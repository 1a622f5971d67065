"""How often does the interval that a search predicts hold what was found on rows that no search has seen?

    python -m benchmarks.prediction_coverage runs/demo --output runs/coverage [--searches 20]

Validation and test rows of a run are one pool, on which nothing was trained. Every search is given its own draw of it,
as large as the validation split and under another seed, and is told nothing of the other rows; on those its choice is
measured. Two random parts of one pool differ as two independent samples do, so that a prediction which chance alone
moves is too high as often as too low. Searches that exist are used, so an interrupted benchmark goes on where
it stopped. Prints Markdown; the figures of every search are in `OUTPUT/figures.json`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from benchmarks.command import command
from benchmarks.kept_files import keep_settings, whole_directory
from benchmarks.search_algorithms import beside
from search.front import BestRule
from search.measuring import build_objective
from search.opening import open_inputs, open_run
from search.pieces import Piece
from search.settings import SearchSettings, recipe_rule, recipe_settings
from search.stage import BEST_FILE, search
from search.strategies.grid import Grid, Indices
from shearling.elastic.subnet import open_subnet
from shearling.errors import ShearlingError, UsageError
from shearling.evaluation.lm_eval_task import write_table
from shearling.evaluation.task import Split, TaskLocation, TaskRow, locate_task, read_rows, write_rows
from shearling.evaluation.task_evaluator import open_evaluator
from shearling.run import Run
from shearling.strict_json import Document, write_json

POOL = "pool"


class Prediction(Document):
    """Of one search; accuracies are 0 to 1.

    Attributes:
        chosen: what the chosen sub-network reached on the rows that chose it.
        predicted: on those that were held back, with its 95 % interval.
        rows: that were held back.
        found: on the rows that the search was not given.
        largest: whether the largest sub-network was chosen.
    """

    seed: int
    chosen: float
    predicted: float
    interval: tuple[float, float]
    rows: int
    found: float
    largest: bool


def draw_rows(rows: Sequence[TaskRow], count: int, *, seed: int) -> tuple[list[TaskRow], list[TaskRow]]:
    """So many rows without an order, and the others."""
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return [rows[place] for place in order[:count]], [rows[place] for place in order[count:]]


def write_task(task: Path, directory: Path, *, validation: Sequence[TaskRow], test: Sequence[TaskRow]) -> Path:
    """The task of a run with other rows."""
    if directory.is_dir():
        return directory
    with whole_directory(directory) as partial:
        for source in (*task.glob("*.yaml"), task / "task.json"):
            shutil.copy(source, partial)
        splits: dict[Split, Sequence[TaskRow]] = {"validation": validation, "test": test}
        for split, rows in splits.items():
            write_rows(partial, split, rows)
            write_table(partial, split)
    return directory


def measure_on_pool(run: Run, pool: Path, settings: SearchSettings) -> Callable[[Indices], Mapping[str, float]]:
    """What tells how right a sub-network answers each row, by the row's digest; each one is measured once."""
    known: dict[Indices, dict[str, float]] = {}
    measured = None

    def answers(indices: Indices) -> Mapping[str, float]:
        nonlocal measured
        if indices not in known:
            if measured is None:
                tested = replace(settings, task=str(pool), split="test", limit=None, cost="none")
                measured = build_objective(tested, open_inputs(open_run(run), task=str(pool)), leads=False)
            split = measured.split
            outcome = measured.objective.measure(Piece(indices, 0, len(split.places)))
            known[indices] = dict(zip(split.digests, outcome.answers, strict=True))
        return known[indices]

    return answers


def predict(
    run: Run,
    place: Path,
    settings: SearchSettings,
    rule: BestRule,
    *,
    unseen: Sequence[str],
    on_pool: Callable[[Indices], Mapping[str, float]],
) -> Prediction:
    """Search on the rows of a task, and hold the prediction against all others.

    Args:
        run: with a super-adapter.
        place: of the search; one that exists is used.
        settings: `task` names the rows.
        rule: for the best.
        unseen: digests of the rows that the search is not given.
        on_pool: see `measure_on_pool`.
    """
    searched = beside(run, place)
    if not searched.search.is_dir():
        search(searched, settings, rule)
    subnet = open_subnet(searched.search / BEST_FILE).subnet
    held_back = subnet.metrics.held_back if subnet.metrics else None
    if subnet.metrics is None or held_back is None:
        raise ShearlingError("a search predicted nothing", where=place)
    opened = open_run(run)
    indices = opened.space.encode(subnet.choice)
    answers = on_pool(indices)
    return Prediction(
        seed=settings.seed,
        chosen=subnet.metrics.accuracy,
        predicted=held_back.accuracy,
        interval=held_back.interval,
        rows=held_back.n,
        found=fmean(answers[digest] for digest in unseen),
        largest=indices == Grid.of(opened.space).maximal,
    )


def table(predictions: Sequence[Prediction]) -> Iterator[str]:
    """A row a search, and a sentence."""
    yield "| seed | on the rows that chose | predicted, with its interval | on unseen rows | held |"
    yield "|---|---|---|---|---|"
    for item in predictions:
        low, high = item.interval
        yield (
            f"| {item.seed} | {item.chosen:.1%} | {item.predicted:.1%} ({low:.1%} to {high:.1%}) | {item.found:.1%} "
            f"| {'yes' if is_covered(item) else 'no'} |"
        )
    yield ""
    yield (
        f"{sum(map(is_covered, predictions))} of {len(predictions)} intervals held it. The prediction was "
        f"{100 * fmean(item.predicted - item.found for item in predictions):+.1f} points off in the mean, what chose "
        f"{100 * fmean(item.chosen - item.found for item in predictions):+.1f}."
    )


def is_covered(prediction: Prediction) -> bool:
    """Whether the interval held what was found."""
    low, high = prediction.interval
    return low <= prediction.found <= high


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Search again and again, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prediction_coverage", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("run", type=Path, help="with a super-adapter and its task")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--searches", type=int, default=20)
    options = parser.parse_args(arguments)
    predictions = _predict_all(Run(options.run), options.output, options.searches)
    sys.stdout.write("\n".join(table(predictions)) + "\n")
    return 0


def _predict_all(run: Run, output: Path, searches: int) -> list[Prediction]:
    if searches < 1:
        raise UsageError(f"{searches} searches predict nothing", where="--searches", remedy="Give 20, for example")
    opened = open_run(run)
    keep_settings(output, {"super_adapter": opened.adapter.sha256})
    section, head = opened.section, open_inputs(opened, task=None).head
    settings = replace(recipe_settings(section), ratios=(), layer_formats=(), latency_table=None)
    name = locate_task(str(run.task)).name
    validation, test = read_rows(run.task, "validation"), read_rows(run.task, "test")
    rows = [*validation, *test]
    pool = write_task(run.task, output / POOL / name, validation=rows, test=rows)
    on_pool = measure_on_pool(run, pool, settings)
    predictions = []
    for seed in range(searches):
        place = output / f"search-{seed}"
        drawn, others = draw_rows(rows, len(validation), seed=seed)
        task = write_task(run.task, place / "rows" / name, validation=drawn, test=others)
        own = replace(settings, task=str(task), seed=seed)
        unseen = open_evaluator(TaskLocation(name, task), head=head, split="test").row_digests
        predictions.append(predict(run, place, own, recipe_rule(section), unseen=unseen, on_pool=on_pool))
        write_json(output / "figures.json", [item.model_dump() for item in predictions])
    return predictions


if __name__ == "__main__":
    sys.exit(main())
