"""A cell of the table: one pruner, ratio and calibration text; the recipe that prunes, and what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pydantic

from benchmarks.kept_cells import cell_file, cell_files, check_same_recipe
from benchmarks.pruning.pruners import DENSE, PRUNERS, Pruner, Reading, calibration
from benchmarks.quality.arms import Ratio, parse_ratio
from benchmarks.quality.cell import layered
from benchmarks.quality.models import BenchmarkModel, smollm2
from benchmarks.quality.tasks import BenchmarkTask, sarcasm
from shearling.recipe.recipe import RECIPE_SCHEMA
from shearling.strict_json import Document, read_document

CELL_SCHEMA = "shearling.pruning/1"
RECIPE_OPTIONS = "--samples"


class PruningDocument(Document):
    """The content of a finished cell's file.

    Attributes:
        ratio: as on the command line; empty for the dense model.
        reading: which text was read; empty where none is.
        recipe: what was carried out.
        sparsity: share of zeros in the pruned modules.
        task_bits_per_byte: of the texts of unseen rows of the task.
        task_sha256: of these texts.
        general_bits_per_byte: of the general text that is held back.
        general_sha256: of that text.
        seconds: wall time of the pruning, from the model in a file to the pruned one, libraries loaded; 0 for the dense
            model.
        processor_s: processor time of the same, of all threads: what other processes take beside is no part of it.
        peak_bytes: the most memory that the process of the pruning has held, libraries included.
        threads: of the pruning.
        precision: of healing, layer tuning and evaluation.
        processor: name, family and model.
    """

    schema_: Literal["shearling.pruning/1"] = pydantic.Field("shearling.pruning/1", alias="schema")
    model: str
    pruner: str
    ratio: str
    reading: Literal["task", "general", "both", ""]
    recipe: dict[str, Any]
    sparsity: float
    task_bits_per_byte: float
    task_sha256: str
    general_bits_per_byte: float
    general_sha256: str
    seconds: float
    processor_s: float
    peak_bytes: int
    threads: int
    precision: Literal["bf16", "fp32"]
    processor: str
    created: str

    @property
    def effort_s(self) -> float:
        """What a quiet machine would take: processor time, but of several threads, which also spin, wall time."""
        return self.processor_s if self.threads == 1 else self.seconds


@dataclass(frozen=True)
class PruningCell:
    """One cell.

    Attributes:
        ratio: None for the dense model.
        reading: None where the pruner reads no text.
        samples: windows of the calibration text instead of the model's number.
        model: that is pruned, as it came.
        task: whose rows are read and measured.
    """

    pruner: Pruner
    ratio: Ratio | None
    reading: Reading | None
    samples: int | None = None
    model: BenchmarkModel = field(default_factory=smollm2)
    task: BenchmarkTask = field(default_factory=sarcasm)

    @property
    def name(self) -> str:
        """Of its file."""
        ratio = None if self.ratio is None else self.ratio.text.replace(":", "of")
        return "-".join(part for part in (self.model.name, ratio, self.pruner.name, self.reading) if part)

    def recipe(self) -> dict[str, Any]:
        """The recipe, as it would stand in a file; it ends with the pruned model."""
        share = {"pattern": "unstructured", "ratio": 0.0} if self.ratio is None else self.ratio.section
        text = {} if self.reading is None else calibration(self.model, self.reading, samples=self.samples)
        return {
            "schema": RECIPE_SCHEMA,
            "name": self.name,
            "seed": 0,
            "model": dict(self.model.section),
            "task": self.task.section(self.model.head),
            "sparsity": layered({**share, **({"calibration": text} if text else {})}, self.pruner.sparsity),
        }


def dense_of(cell: PruningCell) -> PruningCell:
    """The cell of the model that is pruned."""
    return replace(cell, pruner=PRUNERS[DENSE], ratio=None, reading=None)


def cross(
    pruners: Iterable[Pruner], ratios: Iterable[Ratio], readings: Iterable[Reading], *, samples: int | None = None
) -> dict[str, PruningCell]:
    """All cells by name, a whole table of one text before the next.

    The dense model has one cell for all ratios, and what reads no text one for all texts.
    """
    cells: dict[str, PruningCell] = {}
    for reading, ratio, pruner in itertools.product(readings, tuple(ratios), tuple(pruners)):
        if pruner.suits(ratio):
            read, pruned = (reading if pruner.reads_text else None), (None if pruner.name == DENSE else ratio)
            cell = PruningCell(pruner, pruned, read, samples)
            cells.setdefault(cell.name, cell)
    return cells


def read_cell(path: Path) -> PruningDocument:
    """One finished cell.

    Raises:
        ArtefactMissing, DocumentInvalid: there is none, or it is malformed.
    """
    return read_document(path, PruningDocument, schema=CELL_SCHEMA)


def read_cells(output: Path) -> list[PruningDocument]:
    """All finished cells, by name.

    Raises:
        DocumentInvalid: one of them is malformed.
    """
    return [read_cell(path) for path in cell_files(output)]


def check_recipes(output: Path, *, samples: int | None = None) -> None:
    """Refuse finished cells of several recipes; those whose pruner is known no more are left out.

    Args:
        output: the directory of the benchmark.
        samples: windows of the calibration text instead of the model's number.

    Raises:
        UsageError: one was carried out by another recipe than today's.
        DocumentInvalid: one of them is malformed.
    """
    for document in read_cells(output):
        if document.pruner in PRUNERS:
            ratio = parse_ratio(document.ratio) if document.ratio else None
            cell = PruningCell(PRUNERS[document.pruner], ratio, document.reading or None, samples)
            check_same_recipe(cell_file(output, cell.name), document, cell, options=RECIPE_OPTIONS)
