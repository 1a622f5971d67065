"""Whether a latency table orders sub-networks as their exports are: rank correlation with measured whole models.

    python -m benchmarks.latency_table --run RUN --output runs/latency-table [--table RUN/latency] [--subnets 12]
        [--rounds 30] [--seed 0] [--json]

Sub-networks are drawn from the largest to the smallest, each with a larger share of its groups made smaller than the
one before, and exported in the form of the table, without parity gates; exports that exist are used as they are. All
are loaded into this process and take turns, forwards and backwards in alternation, on the threads and tokens of the
table. Uniform draws would all have nearly the mean size, and tell noise apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.command import command
from benchmarks.kept_files import keep_settings
from export.quantization.settings import Quantization
from export.request import ExportRequest
from export.stage import export_subnet
from search.latency.machine import this_machine
from search.latency.stopwatch import WARM_UP, Forward
from search.latency.table import Conditions, LatencyTable, open_table
from search.latency.target import GROUP_WITHOUT_DATA, MODEL_XML
from search.layer_forms import LayerForms
from search.opening import open_run
from search.strategies.grid import Grid, Indices
from shearling.console import log
from shearling.elastic.merge_rule import keeps_ranks_apart
from shearling.elastic.search_space import SearchSpace
from shearling.elastic.subnet import describe_subnet
from shearling.elastic.super_network import assemble_super_network
from shearling.errors import UsageError
from shearling.run import Run, open_frozen
from shearling.strict_json import write_document

TRIES = 1000
"""Draws of a sub-network that is new, before one is taken from those that are left."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Export, measure and compare; 1 where the machine or the runtime is not that of the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency_table", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--run", type=Path, required=True, help="with a super-adapter")
    parser.add_argument("--output", type=Path, required=True, help="where exports are kept")
    parser.add_argument("--table", type=Path, help="default: that of the run")
    parser.add_argument("--subnets", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=30, help="forwards of each")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.subnets < 3:
        parser.error("a rank correlation needs three sub-networks")
    opened = open_run(Run(options.run))
    frozen = open_frozen(opened.adapter)
    network = assemble_super_network(frozen, opened.adapter, opened.space)
    separate = keeps_ranks_apart(network.space, sparse=frozen.manifest.kind == "sparse")
    table = open_table(options.table or Run(options.run).latency, frozen=frozen, separate=separate)
    conditions, forms = table.document.conditions, LayerForms(network)
    if conditions.machine != this_machine():
        log.print(f"the table was measured on another machine: {conditions.machine.processor}")
        return 1
    form = ("weight_format", "sparse_kernel", "group_size")
    kept = {"super_adapter": opened.adapter.sha256, **{name: getattr(conditions, name) for name in form}}
    try:
        keep_settings(options.output, kept)
    except UsageError as error:
        parser.error(str(error))
    grid = Grid.of(opened.space)
    drawn = draw_spread(grid, min(options.subnets, grid.size), seed=options.seed)
    predicted = [table.predict_ms(forms.of(opened.space.decode(indices))) for indices in drawn]
    models = [_export(Run(options.run), opened.space, indices, conditions, options.output) for indices in drawn]
    del network
    measured = measure_in_turn(models, conditions, rounds=options.rounds)
    _tell(drawn, predicted, measured, table, as_json=options.json)
    return 0


def draw_spread(grid: Grid, count: int, *, seed: int) -> list[Indices]:
    """Different candidates from the largest to the smallest, whose groups are made smaller with a rising chance.

    Args:
        grid: holds at least so many.
        count: at least two.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)

    def draw(share: float) -> Indices:
        return tuple(
            int(random.integers(1, size)) if size > 1 and random.random() < share else 0 for size in grid.sizes
        )

    drawn: list[Indices] = []
    for step in range(count - 1):
        draws = (draw(step / (count - 1)) for _ in range(TRIES))
        # What is left of a small space may be too unlikely to wait for.
        everything = itertools.product(*map(range, grid.sizes))
        taken = {*drawn, grid.minimal}
        drawn.append(next(indices for indices in itertools.chain(draws, everything) if indices not in taken))
    return [*drawn, grid.minimal]


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's; equal values share their mean rank."""
    return float(spearmanr(left, right).statistic)


def measure_in_turn(models: Sequence[Path], conditions: Conditions, *, rounds: int) -> list[float]:
    """Median time of a forward of each, ms."""
    forwards = [Forward(model / MODEL_XML, threads=conditions.threads, tokens=conditions.tokens) for model in models]
    samples: list[list[float]] = [[] for _ in forwards]
    for turn in range(rounds + WARM_UP):
        order = range(len(forwards)) if turn % 2 == 0 else reversed(range(len(forwards)))
        for place in order:
            ms = forwards[place].sample_ms()
            if turn >= WARM_UP:
                samples[place].append(ms)
    return [statistics.median(values) for values in samples]


def _export(run: Run, space: SearchSpace, indices: Indices, conditions: Conditions, output: Path) -> Path:
    name = "subnet-" + "-".join(map(str, indices))
    document, directory = output / f"{name}.json", output / name
    if not directory.exists():
        output.mkdir(parents=True, exist_ok=True)
        subnet = describe_subnet(
            open_run(run).adapter,
            space.decode(indices),
            subnet_id=name,
            location=output,
            metrics=None,
            provenance=None,
        )
        write_document(document, subnet)
        fast = conditions.weight_format == "int4" and conditions.group_size == GROUP_WITHOUT_DATA
        request = ExportRequest(
            output=directory,
            formats=("openvino",),
            weight_format=conditions.weight_format,
            sparse_kernels=("openvino",) if conditions.sparse_kernel else (),
            quantization=Quantization(preset="fast") if fast else Quantization(),
            verify="off",
        )
        export_subnet(document, request)
    return directory


def _tell(
    drawn: Sequence[Indices],
    predicted: Sequence[float],
    measured: Sequence[float],
    table: LatencyTable,
    *,
    as_json: bool,
) -> None:
    errors = [guess / truth - 1 for guess, truth in zip(predicted, measured, strict=True)]
    result = {
        "conditions": table.document.conditions.model_dump(mode="json"),
        "subnets": len(drawn),
        "spearman": rank_correlation(predicted, measured),
        "mean_abs_error": statistics.fmean(map(abs, errors)),
        "predicted_ms": list(predicted),
        "measured_ms": list(measured),
        "choices": [list(indices) for indices in drawn],
    }
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    lines = [str(table), "predicted ms  measured ms  error"]
    lines += [
        f"{guess:12.3f}  {truth:11.3f}  {error:+.1%}"
        for guess, truth, error in zip(predicted, measured, errors, strict=True)
    ]
    lines.append(
        f"Spearman {result['spearman']:.3f} over {len(drawn)} sub-networks; mean error {result['mean_abs_error']:.1%}"
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
