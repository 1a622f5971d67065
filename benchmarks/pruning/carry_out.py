"""A cell carried out: pruned in a process of its own, and measured on unseen rows and on general text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.kept_cells import keep_cell
from benchmarks.peak_memory import Measured, run_measured
from benchmarks.pruning.cell import PruningCell, PruningDocument, dense_of
from benchmarks.quality.general_text import GeneralText, bits_per_byte, held_back_text
from search.latency.machine import this_machine
from shearling.artefact import open_artefact, unfinished_artefact, utc_now
from shearling.console import log
from shearling.errors import (
    ArtefactError,
    CheckFailed,
    EnvironmentFault,
    RuntimeCrashed,
    ShearlingError,
    UsageError,
)
from shearling.evaluation.evaluator import TEXT_ROWS, torch_scorer
from shearling.evaluation.precision import resolve_precision
from shearling.evaluation.task import read_rows
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.run import Run
from shearling.strict_json import read_json, write_json

BEGUN_FILE = "begun.json"
"""The recipe of the dense model and of the data that are there."""

CAUSES: Mapping[int, type[ShearlingError]] = {
    kind.exit_code: kind for kind in (CheckFailed, UsageError, ArtefactError, EnvironmentFault)
}
"""What a process ended with is what the benchmark ends with, where it cannot even begin."""


def carry_out_all(cells: Iterable[PruningCell], output: Path, *, threads: int) -> dict[str, ShearlingError]:
    """Carry out cells one after the other, and write a file for each.

    Args:
        cells: unfinished.
        output: the directory of the benchmark; the dense model is made there, once, and stays.
        threads: of each pruning.

    Returns:
        By name what went wrong; the other cells are finished all the same.

    Raises:
        ShearlingError: the dense model or the data cannot be made.
    """
    wanted, run, failed = list(cells), Run(output / "run"), dict[str, ShearlingError]()
    if wanted:
        begin(wanted[0], run, threads=threads)
    for place, cell in enumerate(wanted):
        log.print(f"{cell.name}: {len(wanted) - place} to do", style="bold")
        try:
            document = carry_out(cell, run, threads=threads)
        except ShearlingError as error:
            failed[cell.name] = error
            log.print(f"{cell.name} failed: {error}", style="red")
        else:
            keep_cell(output, cell.name, document)
    return failed


def begin(cell: PruningCell, run: Run, *, threads: int) -> None:
    """Make the dense model and the data of a cell, where they are not there.

    Raises:
        ShearlingError: they cannot be made, or others are there.
    """
    dense, begun = dense_of(cell), run.path / BEGUN_FILE
    recipe = json.loads(json.dumps(dense.recipe()))
    if begun.is_file() and read_json(begun) == recipe:
        return
    remove_pruned(run)
    run.path.mkdir(parents=True, exist_ok=True)
    _in_a_process(dense, run, "--begin", threads=threads)
    remove_pruned(run)
    write_json(begun, recipe)


def carry_out(cell: PruningCell, run: Run, *, threads: int) -> PruningDocument:
    """Carry out one cell.

    Args:
        cell: which.
        run: has the dense model and the data, see `begin`.
        threads: of the pruning, and of the evaluation.

    Raises:
        ShearlingError: whatever the pruning refuses, or its process did not live to say.
    """
    import torch

    torch.set_num_threads(threads)
    task, general = task_text(run), held_back_text()
    remove_pruned(run)
    try:
        taken = Taken(0.0, 0.0, 0) if cell.ratio is None else _prune(cell, run, threads=threads)
        model = open_artefact(run.base, kind="base") if cell.ratio is None else open_artefact(run.sparse, kind="sparse")
        scorer = torch_scorer(load_model(model.path).eval(), load_tokenizer(model.path), precision="auto")
        task_bits, general_bits = (bits_per_byte(scorer, text) for text in (task, general))
    finally:
        remove_pruned(run)
    return PruningDocument(
        model=cell.model.name,
        pruner=cell.pruner.name,
        ratio=cell.ratio.text if cell.ratio else "",
        reading=cell.reading or "",
        recipe=json.loads(json.dumps(cell.recipe())),
        sparsity=model.manifest.details.get("sparsity", {}).get("achieved_scope", 0.0),
        task_bits_per_byte=task_bits,
        task_sha256=task.sha256,
        general_bits_per_byte=general_bits,
        general_sha256=general.sha256,
        seconds=taken.seconds,
        processor_s=taken.processor_s,
        peak_bytes=taken.peak_bytes,
        threads=threads,
        precision=resolve_precision("auto"),
        processor=this_machine().processor,
        created=utc_now(),
    )


def task_text(run: Run) -> GeneralText:
    """The texts of the first unseen rows: those that `shearling evaluate` measures."""
    return GeneralText(tuple(row.text for row in read_rows(run.task, "test")[:TEXT_ROWS]))


class Taken(NamedTuple):
    """What a pruning took; see `PruningDocument`."""

    seconds: float
    processor_s: float
    peak_bytes: int


def _prune(cell: PruningCell, run: Run, *, threads: int) -> Taken:
    done = _in_a_process(cell, run, threads=threads)
    # The last line, whatever libraries have to say before.
    found = json.loads(done.output.strip().splitlines()[-1])
    return Taken(found["seconds"], found["processor_s"], done.peak_bytes)


def _in_a_process(cell: PruningCell, run: Run, *options: str, threads: int) -> Measured:
    recipe, count = run.path / "recipe.json", str(threads)
    write_json(recipe, cell.recipe())
    environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
    done = run_measured(["benchmarks.pruning.worker", str(recipe), str(run.path), *options], environment=environment)
    if done.exit_code:
        last = " ".join(done.log.strip().splitlines()[-1:])
        cause = RuntimeCrashed if done.exit_code < 0 else CAUSES.get(done.exit_code, ShearlingError)
        raise cause(f"its process ended with {done.exit_code}: {last}", where=cell.name)
    return done


def remove_pruned(run: Run) -> None:
    """Remove the pruned model of a run, also where an interrupted pruning has left a part of it."""
    for path in (run.sparse, unfinished_artefact(run.sparse)):
        shutil.rmtree(path, ignore_errors=True)
