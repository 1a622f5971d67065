"""Layers that choose their zeros and formats against layers that are all alike, at equal bytes, on unseen rows.

    python -m benchmarks.mixed_layers --run RUN --ratios 0.5,0.6,0.7 --layer-formats int8,int4 --evaluations 16

The budget is what the uniform mixture named by --budget takes, packed for the sparse kernel. The search sees validation
rows alone; then its best sub-network and every uniform one within the budget answer the same test rows, and differences
are taken row by row. The search stands beside the figures; an interrupted one continues.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.search_algorithms import beside, require_settings
from search.front import BestRule
from search.mixing_options import parse_layer_formats, parse_ratios
from search.opening import open_inputs, open_run
from search.settings import recipe_settings
from search.stage import search
from search.stored_bytes import StoredForm
from search.strategies.grid import Indices
from search.uniform import uniform_mixtures
from shearling.command_line import run_command
from shearling.console import log
from shearling.elastic.subnet import open_subnet
from shearling.elastic.super_network import assemble_super_network
from shearling.evaluation.paired_difference import paired_difference
from shearling.evaluation.task import TaskLocation
from shearling.evaluation.task_evaluator import open_evaluator
from shearling.run import Run

ASKED = ("algorithm", "evaluations", "seed", "ratios", "layer_formats", "max_bytes")

app = typer.Typer(add_completion=False)


@app.command()
def compare(
    run: Annotated[Path, typer.Option(help="With a super-adapter and variants.")],
    output: Annotated[Path, typer.Option(help="The figures, as JSON.")],
    budget: Annotated[str, typer.Option(help="Share of zeros and format of the uniform model to match: 0.6,int8.")],
    ratios: str = "0.5,0.6,0.7",
    layer_formats: str = "int8,int4",
    algorithm: str = "hill_climbing",
    evaluations: int = 16,
    rows: Annotated[int, typer.Option(help="Of the test split, from the first.")] = 1000,
    seed: int = 0,
) -> None:
    """Search under the budget, and measure what was found."""
    from search.costing import CostCounter

    shares, formats = parse_ratios(ratios) or (), parse_layer_formats(layer_formats) or ()
    opened = open_run(Run(run)).mixed(ratios=shares, formats=formats)
    inputs = open_inputs(opened, task=None)
    network = assemble_super_network(inputs.frozen, inputs.adapter, inputs.space, variants=inputs.variants)
    counter = CostCounter(network, tokens=1, stored=StoredForm("int4", sparse_kernel=True))
    uniform = {_name(opened.space.decode(each)): each for each in uniform_mixtures(opened.space)}
    most = int(counter.costs(uniform[budget]).model_bytes)
    log.print(f"{budget} has {most} bytes")
    settings = replace(
        recipe_settings(opened.section),
        algorithm=algorithm,
        evaluations=evaluations,
        seed=seed,
        ratios=shares,
        layer_formats=formats,
        sparse_kernel=True,
        max_bytes=most,
    )
    # Beside the run, which may have a search of its own.
    place = beside(Run(run), output.with_suffix(""))
    if not place.search.exists():
        search(place, settings, BestRule(), consent=lambda _lost: True)
    require_settings(place, settings, ASKED)
    found = open_subnet(place.search / "best.json").subnet
    evaluator = open_evaluator(
        TaskLocation(str(inputs.task.manifest.details["name"]), Run(run).task),  # type: ignore[union-attr] # a run has one
        head=inputs.head,
        split="test",
        batch_size=settings.batch_size,
    )
    measure = evaluator.on_torch(network.model, network.tokenizer, precision=settings.precision)
    places = tuple(range(min(rows, len(evaluator.row_digests))))
    within = {name: each for name, each in uniform.items() if counter.costs(each).model_bytes <= most}
    asked: dict[str, Indices] = {"mixed": opened.space.encode(found.choice), **within}
    answers: dict[str, Any] = {}
    for name, indices in asked.items():
        network.activate(opened.space.decode(indices))
        with network.materialised():
            evaluation = measure(places)
        answers[name] = evaluation.answers
        log.print(f"{name}: {evaluation.accuracy:.1%} of {len(places)}, {counter.costs(indices).model_bytes} bytes")
    figures = {
        name: {
            "accuracy": sum(answers[name]) / len(places),
            "model_bytes": counter.costs(indices).model_bytes,
            "mixed_less_this": _less(answers["mixed"], answers[name]) if name != "mixed" else None,
        }
        for name, indices in asked.items()
    }
    chosen = None if found.mixture is None else found.mixture.words
    output.write_text(json.dumps({"budget": most, "rows": len(places), "mixed": chosen, "models": figures}, indent=2))


def _less(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    found = paired_difference(first, second)
    return {"n": found.n, "mean": found.mean, "interval": found.interval, "p_value": found.p_value}


def _name(choice: dict[str, int]) -> str:
    """Of a uniform mixture, by its first layer."""
    return f"{choice['layers.0.sparsity'] / 100:g},int{choice['layers.0.format']}"


if __name__ == "__main__":
    run_command(app, program="python -m benchmarks.mixed_layers")
