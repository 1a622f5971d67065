"""A cell carried out: pruned, trained, searched where it is elastic, and measured on test rows and general text."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydantic

from benchmarks.kept_cells import keep_cell
from benchmarks.quality.cell import Cell, CellDocument
from benchmarks.quality.general_text import GeneralText, held_back_text
from benchmarks.quality.measuring import bits_in_torch, measure_cell
from search.stage import BEST_FILE, LOCAL, search_by_recipe
from shearling.artefact import MANIFEST, Artefact, unfinished_artefact, utc_now
from shearling.console import log
from shearling.elastic.search_space import Choice
from shearling.elastic.subnet import open_subnet
from shearling.errors import RecipeInvalid, ShearlingError
from shearling.evaluation.precision import resolve_precision
from shearling.executors.executor import Workforce
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.recipe.recipe import Recipe
from shearling.run import Run
from shearling.strict_json import Document, read_document, write_document
from train.stage import run_recipe

ADAPTED_FILE = "adapted.json"
PREPARED_FILE = "prepared.json"


class AdaptedModel(Document):
    """What is known of the dense model with its LoRA, kept beside it for all cells that begin with it.

    Attributes:
        seconds: that the import and the LoRA took.
    """

    seconds: float


class Prepared(Document):
    """What is known of a frozen model, kept beside it for all cells that train on it.

    Attributes:
        seconds: that the import, the LoRA and the pruning took.
        bits_per_byte: of the general text; None where the model is no language model.
    """

    seconds: float
    bits_per_byte: float | None


def carry_out_all(
    cells: Iterable[Cell],
    output: Path,
    *,
    keep: bool,
    workforce: Workforce = LOCAL,
    llama_cpp: Path | None = None,
) -> dict[str, ShearlingError]:
    """Carry out cells, and write a file for each: those that share a frozen model one after the other, and so those
    that share an adapted one.

    Args:
        cells: unfinished.
        output: the directory of the benchmark.
        keep: leave the run directories; otherwise each goes when its last cell is finished.
        workforce: what measures the candidates of searches.
        llama_cpp: an environment with it, for what others serve.

    Returns:
        By name what went wrong; the other cells are finished all the same.
    """
    groups = _grouped(cells)
    left, failed = sum(map(len, groups)), dict[str, ShearlingError]()
    for place, group in enumerate(groups):
        run = Run(output / "runs" / group[0].run_name)
        for cell in group:
            log.print(f"{cell.name}: {left} to do", style="bold")
            left -= 1
            try:
                document = carry_out(cell, run, workforce=workforce, llama_cpp=llama_cpp)
            except ShearlingError as error:
                failed[cell.name] = error
                log.print(f"{cell.name} failed: {error}", style="red")
            else:
                keep_cell(output, cell.name, document)
        for following in (later[0] for later in groups[place + 1 : place + 2]):
            if following.arm.adapted and following.adapted_name == group[0].adapted_name:
                _hand_on(run, Run(output / "runs" / following.run_name))
        if not keep:
            shutil.rmtree(run.path, ignore_errors=True)
    return failed


def _grouped(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Those of one run together, and the runs that begin with the same adapted model behind each other."""
    runs: dict[str, list[Cell]] = {}
    for cell in cells:
        runs.setdefault(cell.run_name, []).append(cell)
    begun: dict[str, list[list[Cell]]] = {}
    for name, group in runs.items():
        begun.setdefault(group[0].adapted_name or name, []).append(group)
    return [group for groups in begun.values() for group in groups]


def _hand_on(run: Run, following: Run) -> None:
    """Copy the adapted model, and what it was made from, to a run that has none."""
    if not (run.path / ADAPTED_FILE).is_file() or following.path.exists():
        return
    for path in _adapted_parts(run):
        shutil.copytree(path, following.path / path.name)
    # Last, since it says that the others are whole.
    shutil.copy2(run.path / ADAPTED_FILE, following.path / ADAPTED_FILE)


def _adapted_parts(run: Run) -> tuple[Path, ...]:
    return run.base, run.task, run.lora, run.adapted


def carry_out(cell: Cell, run: Run, *, workforce: Workforce = LOCAL, llama_cpp: Path | None = None) -> CellDocument:
    """Carry out one cell, anew from the training on.

    Args:
        cell: which.
        run: its run directory; a frozen or an adapted model that is there is used as it is.
        workforce: what measures the candidates of its search.
        llama_cpp: an environment with it, for what others serve.

    Raises:
        RecipeInvalid: what the arm says is no recipe.
        ShearlingError: whatever the stages refuse.
    """
    import torch

    prepared, adapted = _clear(run), _read_adapted(run)
    text, content = held_back_text(), cell.recipe()
    with _timed() as whole:
        made = run_recipe(_validated(content, cell), run.path)
    frozen = next(made[kind] for kind in ("sparse", "adapted", "base") if kind in made)
    train_s = whole.seconds
    if prepared is None:
        earlier_s = 0.0 if adapted is None else adapted.seconds
        if adapted is None and "adapted" in made:
            write_document(run.path / ADAPTED_FILE, AdaptedModel(seconds=whole.until(made["adapted"])))
        prepare_s = whole.until(frozen)
        prepared = Prepared(seconds=earlier_s + prepare_s, bits_per_byte=_bits_before(cell, frozen, text))
        write_document(run.path / PREPARED_FILE, prepared)
        train_s -= prepare_s
    with _timed() as searching:
        searched = _search(run, workforce) if cell.arm.ranks == "elastic" else None
    return CellDocument(
        model=cell.model.name,
        arm=cell.arm.name,
        ratio=cell.ratio.text if cell.ratio else "",
        task=cell.task.name,
        seed=cell.seed,
        recipe=content,
        sparsity=frozen.manifest.details.get("sparsity", {}).get("achieved_scope", 0.0),
        bits_per_byte=prepared.bits_per_byte,
        general_text_sha256=text.sha256,
        subnets=tuple(measure_cell(cell, run, searched, text, llama_cpp=llama_cpp)),
        prepare_s=prepared.seconds,
        train_s=train_s,
        search_s=searching.seconds if searched else 0.0,
        precision=resolve_precision("auto"),
        threads=torch.get_num_threads(),
        created=utc_now(),
    )


def _validated(content: dict[str, Any], cell: Cell) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except pydantic.ValidationError as error:
        raise RecipeInvalid(f"the arm makes no recipe: {error}", where=cell.name) from None


class _Clock:
    began_s = 0.0
    seconds = 0.0

    def until(self, artefact: Artefact) -> float:
        """Seconds from the beginning until an artefact was written."""
        # The manifest itself tells the time to the second alone.
        written_s = (artefact.path / MANIFEST).stat().st_mtime
        return min(self.seconds, max(0.0, written_s - self.began_s))


@contextmanager
def _timed() -> Iterator[_Clock]:
    clock, started_s = _Clock(), time.monotonic()
    clock.began_s = time.time()
    yield clock
    clock.seconds = time.monotonic() - started_s


def _clear(run: Run) -> Prepared | None:
    """Leave of a run what was prepared, of one that was interrupted before that was known the adapted model, or nothing
    where that was not known either.
    """
    file = run.path / PREPARED_FILE
    if file.is_file():
        for path in (run.super_adapter, run.search):
            shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(unfinished_artefact(path), ignore_errors=True)
        return read_document(file, Prepared)
    kept = {run.path / ADAPTED_FILE, *_adapted_parts(run)} if (run.path / ADAPTED_FILE).is_file() else set()
    for path in run.path.iterdir() if run.path.is_dir() else ():
        if path not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


def _read_adapted(run: Run) -> AdaptedModel | None:
    file = run.path / ADAPTED_FILE
    return read_document(file, AdaptedModel) if file.is_file() else None


def _bits_before(cell: Cell, frozen: Artefact, text: GeneralText) -> float | None:
    if cell.model.head == "classifier":
        return None
    return bits_in_torch(load_model(frozen.path).eval(), load_tokenizer(frozen.path), text)


def _search(run: Run, workforce: Workforce) -> tuple[Choice, dict[str, Any]]:
    search_by_recipe(run, settings={}, rule={}, workforce=workforce)
    subnet = open_subnet(run.search / BEST_FILE).subnet
    return subnet.choice, subnet.metrics.model_dump(mode="json") if subnet.metrics else {}
