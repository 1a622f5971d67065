"""Search algorithms side by side, at equal budgets and over seeds, for the table of docs/results/search.md.

    python -m benchmarks.search_algorithms runs/demo runs/minilm --output runs/algorithms
        [--algorithms nsga2,rnsga2,hill_climbing,random,heuristic] [--seeds 0,1,2] [--evaluations 40] [--cost macs]

Every search goes over the same validation rows of the run, whose super-network is used as it is. Of each are told the
hypervolume of what it explored, the sub-network that was the most accurate on the rows that chose it, as the papers
take it, and what `best.json` took, both on the run's test rows, which no search has seen. Searches that exist are used
as they are, so an interrupted benchmark goes on where it stopped. Prints Markdown; the figures of every search are in
`OUTPUT/figures.json`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.command import command
from search.front import BestRule
from search.journal import JOURNAL_FILE, Journal
from search.measuring import MeasuredTask, build_objective
from search.opening import open_inputs, open_run
from search.pieces import Piece
from search.settings import SearchSettings, recipe_settings, settle
from search.stage import BEST_FILE, search
from search.strategies.grid import Indices
from search.view.hypervolume import hypervolumes
from shearling.artefact import open_artefact
from shearling.elastic.search_space import SearchSpace
from shearling.elastic.subnet import open_subnet
from shearling.errors import UsageError
from shearling.run import Run
from shearling.strict_json import Document, write_json

ASKED = ("evaluations", "population", "limit", "cost")
ALGORITHMS = ("nsga2", "rnsga2", "hill_climbing", "random", "heuristic")


class Figures(Document):
    """Of one search; accuracies are 0 to 1.

    Attributes:
        evaluations: distinct sub-networks that the algorithm asked for.
        hypervolume: see `search.view.hypervolume`.
        chosen: accuracy of the most accurate one on the rows that chose it.
        unseen: the same on test rows.
        best_unseen: on test rows, what `best.json` took.
        cost: of the most accurate one, as a share of the largest.
    """

    run: str
    algorithm: str
    seed: int
    evaluations: int
    hypervolume: float
    chosen: float
    unseen: float
    best_unseen: float
    cost: float


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Search what is missing, measure on test rows, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search_algorithms", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("runs", type=Path, nargs="+", help="with a super-adapter and its task")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    parser.add_argument("--seeds", default="0,1,2", help="of the searches")
    parser.add_argument("--evaluations", type=int, default=40, help="sub-networks of a search")
    parser.add_argument("--population", type=int, default=10)
    parser.add_argument(
        "--rows", type=int, default=200, help="validation rows that choose, as far as there are so many"
    )
    parser.add_argument("--cost", default="auto", help="what is saved beside accuracy; see python -m search --help")
    options = parser.parse_args(arguments)
    figures: list[Figures] = []
    for path in options.runs:
        run = Run(path)
        opened = open_run(run)
        settings = replace(
            recipe_settings(opened.section),
            evaluations=options.evaluations,
            population=options.population,
            limit=options.rows,
            cost=options.cost,
            ratios=(),
            layer_formats=(),
            max_cost_share=None,
            max_bytes=None,
            max_latency_ms=None,
        )
        settings = settle(settings, BestRule(), opened.space, sparse=run.sparse.is_dir())
        measured = build_objective(
            replace(settings, split="test", limit=None), open_inputs(opened, task=None), leads=True
        )
        # A search that asks for one sub-network alone does not measure the largest.
        largest = measured.objective.count(opened.space.encode(opened.space.maximal()))
        on_test_rows = functools.cache(functools.partial(_accuracy, measured))
        for algorithm in options.algorithms.split(","):
            for seed in map(int, options.seeds.split(",")):
                place = beside(run, options.output / path.resolve().name / f"{algorithm}-{seed}")
                asked = replace(settings, algorithm=algorithm, seed=seed)
                if not place.search.is_dir():
                    search(place, asked, BestRule())
                require_settings(place, asked, ASKED)
                figures.append(_read(place, opened.space, on_test_rows, run=path.resolve().name, largest=largest))
                write_json(options.output / "figures.json", [item.model_dump() for item in figures])
    sys.stdout.write("\n".join(_table(figures)) + "\n")
    return 0


def beside(run: Run, place: Path) -> Run:
    """A run directory with the artefacts of another one, and a room of its own for the search."""
    place.mkdir(parents=True, exist_ok=True)
    kept = place / run.super_adapter.name
    if kept.is_symlink() and kept.resolve() != run.super_adapter.resolve():
        raise UsageError(
            f"it holds searches of {kept.resolve().parent}", where=place, remedy="Give another --output for this run"
        )
    for source in (run.base, run.adapted, run.sparse, run.variants, run.super_adapter, run.task):
        link = place / source.name
        if source.is_dir() and not link.is_symlink():
            link.symlink_to(source.resolve(), target_is_directory=True)
    return Run(place)


def require_settings(place: Run, asked: SearchSettings, names: Sequence[str]) -> None:
    """Refuse to take a finished search for one of other settings.

    Raises:
        UsageError: names what differs.
    """
    done = open_artefact(place.search, kind="search", only=()).manifest.details["settings"]
    wanted = json.loads(json.dumps({name: getattr(asked, name) for name in names}))
    differing = [name for name in names if done[name] != wanted[name]]
    if differing:
        raise UsageError(
            f"it was searched with another {', '.join(differing)}", where=place.search, remedy="Give another --output"
        )


def _accuracy(measured: MeasuredTask, indices: Indices) -> float:
    return measured.objective.measure(Piece(indices, 0, len(measured.split.places))).accuracy


def _read(
    place: Run, space: SearchSpace, on_test_rows: Callable[[Indices], float], *, run: str, largest: float
) -> Figures:
    explored = [record for record in Journal(place.search / JOURNAL_FILE).records if record.part == "explored"]
    likeliest = min(explored, key=BestRule().rank)
    found = open_subnet(place.search / BEST_FILE)
    algorithm, _, seed = place.path.name.rpartition("-")
    return Figures(
        run=run,
        algorithm=algorithm,
        seed=int(seed),
        evaluations=len({record.choice_idx for record in explored}),
        hypervolume=hypervolumes(explored, dearest=largest)[-1],
        chosen=likeliest.accuracy,
        unseen=on_test_rows(likeliest.choice_idx),
        best_unseen=on_test_rows(space.encode(found.subnet.choice)),
        cost=likeliest.cost / largest if largest else 1.0,
    )


def _table(figures: Sequence[Figures]) -> Iterator[str]:
    yield "| run | algorithm | sub-networks | hypervolume | chosen, % | unseen, % | best.json unseen, % | cost |"
    yield "|---|---|---|---|---|---|---|---|"
    for run, algorithm in dict.fromkeys((item.run, item.algorithm) for item in figures):
        of_it = [item for item in figures if (item.run, item.algorithm) == (run, algorithm)]
        yield " | ".join(
            (
                f"| {run} | {algorithm}",
                f"{fmean(item.evaluations for item in of_it):.0f}",
                _spread([item.hypervolume for item in of_it], digits=4),
                _spread([100 * item.chosen for item in of_it]),
                _spread([100 * item.unseen for item in of_it]),
                _spread([100 * item.best_unseen for item in of_it]),
                f"{fmean(item.cost for item in of_it):.2f} |",
            )
        )


def _spread(values: Sequence[float], *, digits: int = 1) -> str:
    deviation = f" +- {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    sys.exit(main())
