"""A cell of the table: one model, arm, ratio, task and seed; the recipe that carries it out, and what was measured."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pydantic

from benchmarks.kept_cells import cell_file, cell_files, check_same_recipe, unfinished_cells
from benchmarks.quality.arms import ARMS, LORA_STEPS, Arm, Ratio, parse_ratio
from benchmarks.quality.models import MODELS, BenchmarkModel
from benchmarks.quality.tasks import TASKS, BenchmarkTask
from shearling.errors import UsageError
from shearling.recipe.recipe import RECIPE_SCHEMA
from shearling.strict_json import Document, read_document

if TYPE_CHECKING:
    from shearling.evaluation.evaluator import Evaluation

CELL_SCHEMA = "shearling.quality/1"
RECIPE_OPTIONS = "--steps and --test-rows"
GRID_SAMPLES, GRID_TOKENS = 64, 128
"""Windows of the calibration text that a grid is settled on, and their tokens."""
LlamaCppFile = Literal["Q8_0", "Q4_0", "Q4_0-pure-imatrix", "Q4_K_M-imatrix"]
LLAMA_CPP_FILES: tuple[LlamaCppFile, ...] = get_args(LlamaCppFile)
ServedName = Literal["packed", "packed-int4", "openvino-int8", "openvino-int4", LlamaCppFile]
SubnetName = Literal["adapted", "frozen", "largest", "heuristic", "searched", ServedName]
"""adapted: the dense model with its LoRA, where the arm begins with that; frozen: the same, pruned, before it has
elastic adapters; packed: the one that was searched, merged and exported as int8 for the sparse kernel, in OpenVINO;
packed-int4: as int4, tuned on the task's rows and a general text, or as it was trained where that was on integers;
openvino-int8, openvino-int4: a dense model as OpenVINO's own products have it, int4 rounded on the same texts, its
scales not tuned; the others are files of llama.cpp, imatrix those with an importance matrix of the same texts."""


class SubnetFigures(Document):
    """What one sub-network scores on the test rows.

    Attributes:
        subnet: which one; an arm of fixed rank has the largest alone.
        n: test rows.
        interval: Wilson, 95 %, of these rows.
        answers: a character a row, 1 where it is right: for paired comparisons.
        bits_per_byte: of the general text, after training; None where the model is no language model.
        predicted: what the search said of it on validation rows, as in its document.
    """

    subnet: SubnetName
    n: int
    accuracy: float
    interval: tuple[float, float]
    loss: float | None
    rows_sha256: str
    answers: str
    bits_per_byte: float | None
    predicted: dict[str, Any] | None = None


def figures_of(
    evaluation: Evaluation, *, subnet: SubnetName, bits: float | None, predicted: dict[str, Any] | None = None
) -> SubnetFigures:
    """An evaluation as a cell keeps it."""
    return SubnetFigures(
        subnet=subnet,
        n=evaluation.n,
        accuracy=evaluation.accuracy,
        interval=evaluation.interval,
        loss=evaluation.loss,
        rows_sha256=evaluation.rows_sha256,
        answers="".join(f"{answer:.0f}" for answer in evaluation.answers),
        bits_per_byte=bits,
        predicted=predicted,
    )


class CellDocument(Document):
    """The content of a finished cell's file.

    Attributes:
        ratio: as on the command line; empty for a dense model.
        recipe: what was carried out.
        sparsity: share of zeros in the pruned modules; 0 for a dense model.
        bits_per_byte: of the general text, before training.
        general_text_sha256: of that text.
        subnets: the sub-networks that were measured.
        prepare_s: wall time of the import and the pruning; of cells that share the pruned model, what it took the
            first.
        train_s: of the training.
        search_s: of the search; 0 where there is none.
        precision: that was evaluated in.
        threads: of torch.
    """

    schema_: Literal["shearling.quality/1"] = pydantic.Field("shearling.quality/1", alias="schema")
    model: str
    arm: str
    ratio: str
    task: str
    seed: int
    recipe: dict[str, Any]
    sparsity: float
    bits_per_byte: float | None
    general_text_sha256: str
    subnets: tuple[SubnetFigures, ...]
    prepare_s: float
    train_s: float
    search_s: float
    precision: Literal["bf16", "fp32"]
    threads: int
    created: str

    @property
    def name(self) -> str:
        """Of its file."""
        return _name_of(self.model, self.task, self.seed, self.ratio, self.arm)


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        ratio: None where the arm does not prune.
        steps: of every training instead of the model's own.
        test_rows: instead of the task's.
    """

    model: BenchmarkModel
    arm: Arm
    ratio: Ratio | None
    task: BenchmarkTask
    seed: int
    steps: int | None = None
    test_rows: int | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        ratio = self.ratio.text if self.ratio else ""
        return _name_of(self.model.name, self.task.name, self.seed, ratio, self.arm.name)

    @property
    def run_name(self) -> str:
        """Of its run directory: cells that train on the same frozen model and rows share one."""
        return self._named_after("model", "task", "sparsity")

    @property
    def adapted_name(self) -> str | None:
        """The same for cells that begin with the same adapted model; None where the arm does not begin with one."""
        return self._named_after("model", "task") if self.arm.adapted else None

    def _named_after(self, *parts: str) -> str:
        recipe = self.recipe()
        # An adapted model depends on how its LoRA was trained as well; the arms agree on that.
        digest = hashlib.sha256(json.dumps([*map(recipe.get, parts), self.steps], sort_keys=True).encode()).hexdigest()
        return f"{self.model.name}-{self.task.name}-{self.seed}-{digest[:12]}"

    def recipe(self) -> dict[str, Any]:
        """The recipe, as it would stand in a file."""
        arm, model = self.arm, self.model
        task = layered(self.task.section(model.head), arm.task)
        test = {} if self.test_rows is None else {"rows": {**task["rows"], "test": self.test_rows}}
        recipe: dict[str, Any] = {
            "schema": RECIPE_SCHEMA,
            "name": self.name,
            "seed": self.seed,
            "model": {**model.section, **({"adaptation": {"steps": self.steps or LORA_STEPS}} if arm.adapted else {})},
            "task": {**task, **test},
        }
        if arm.sparsity is not None and self.ratio is not None:
            recipe["sparsity"] = layered({"calibration": dict(model.calibration), **self.ratio.section}, arm.sparsity)
        if arm.quantization is not None:
            text = {**model.calibration, "samples": GRID_SAMPLES, "seq_len": GRID_TOKENS}
            recipe["quantization"] = layered({"calibration": text}, arm.quantization)
        return recipe | self._training()

    def _training(self) -> dict[str, Any]:
        arm, model = self.arm, self.model
        steps = {} if self.steps is None else {"steps": self.steps}
        # An encoder has no language that a teacher could keep, and no arm that begins with a LoRA.
        left_out = ("teacher", "steps") if model.head == "classifier" else ()
        changes = {key: value for key, value in arm.train.items() if key not in left_out}
        training: dict[str, Any] = {
            "adapter": {**model.adapter, "masked": arm.sparsity is not None, **arm.adapter, "groups": self._groups()},
            "train": {**layered(model.train, changes), **steps},
        }
        if arm.forwards > 1:
            training["train"]["steps"] = max(1, training["train"]["steps"] // arm.forwards)
        if arm.ranks == "elastic":
            training["search"] = {**model.search, "seed": self.seed}
        return training

    def _groups(self) -> list[dict[str, Any]]:
        ranks = self.model.ranks[:1] if self.arm.ranks == "fixed" else self.model.ranks
        return [
            {"name": name, "modules": list(modules), "ranks": list(ranks)}
            for name, modules in self.model.groups.items()
        ]


def _name_of(model: str, task: str, seed: int, ratio: str, arm: str) -> str:
    return f"{model}-{task}-{seed}-{ratio.replace(':', 'of') or '0'}-{arm}"


def layered(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section with other values of some keys, of its tables as well."""
    both = {
        key: layered(base[key], value) if isinstance(value, Mapping) and isinstance(base.get(key), Mapping) else value
        for key, value in changes.items()
    }
    return {**base, **both}


def cross(
    models: Iterable[BenchmarkModel],
    tasks: Iterable[BenchmarkTask],
    seeds: Iterable[int],
    ratios: Iterable[Ratio],
    arms: Iterable[Arm],
    *,
    steps: int | None = None,
    test_rows: int | None = None,
) -> dict[str, Cell]:
    """All cells by name: a whole table for one seed before the next.

    A task that a model cannot answer is left out, and an arm that a model or a ratio cannot have; a dense arm has one
    cell for all ratios.
    """
    cells: dict[str, Cell] = {}
    for model, seed, task, ratio, arm in itertools.product(models, seeds, tasks, tuple(ratios), tuple(arms)):
        if task.suits(model.head) and arm.suits(model.head, ratio):
            pruned = None if arm.sparsity is None else ratio
            cell = Cell(model, arm, pruned, task, seed, steps, test_rows)
            cells.setdefault(cell.name, cell)
    return cells


def read_cells(output: Path) -> list[CellDocument]:
    """All finished cells, by name.

    Raises:
        DocumentInvalid: one of them is malformed.
    """
    return [read_cell(path) for path in cell_files(output)]


def read_cell(path: Path) -> CellDocument:
    """One finished cell.

    Raises:
        ArtefactMissing, DocumentInvalid: there is none, or it is malformed.
    """
    return read_document(path, CellDocument, schema=CELL_SCHEMA)


def unfinished(cells: Mapping[str, Cell], output: Path, *, llama_cpp: bool = False) -> list[Cell]:
    """The cells that have no file yet, or one that lacks what is asked for.

    Args:
        cells: by name.
        output: the directory of the benchmark.
        llama_cpp: files of llama.cpp are, of arms whose models are served.

    Raises:
        UsageError: one was carried out by another recipe: its figures do not belong beside the others.
        DocumentInvalid: one of them is malformed.
    """
    left = unfinished_cells(cells, output, read_cell, options=RECIPE_OPTIONS)
    if llama_cpp:
        served = [cell for cell in cells.values() if cell.arm.served and cell.model.head == "language_model"]
        left += [
            cell for cell in served if cell not in left and _lacks_llama_cpp(read_cell(cell_file(output, cell.name)))
        ]
    return left


def _lacks_llama_cpp(document: CellDocument) -> bool:
    return not set(LLAMA_CPP_FILES) <= {figures.subnet for figures in document.subnets}


def check_recipes(output: Path, *, steps: int | None = None, test_rows: int | None = None) -> None:
    """Refuse finished cells of several recipes; those whose model, task or arm is known no more are left out.

    Args:
        output: the directory of the benchmark.
        steps: of every training instead of the models' own.
        test_rows: instead of the tasks'.

    Raises:
        UsageError: one was carried out by another recipe than today's, or two of a task have other rows or texts.
        DocumentInvalid: one of them is malformed.
    """
    documents = read_cells(output)
    _check_same_rows(output, documents)
    for document in documents:
        if document.model in MODELS and document.task in TASKS and document.arm in ARMS:
            model, task = MODELS[document.model](), TASKS[document.task]()
            ratio = parse_ratio(document.ratio) if document.ratio else None
            cell = Cell(model, ARMS[document.arm], ratio, task, document.seed, steps, test_rows)
            check_same_recipe(cell_file(output, cell.name), document, cell, options=RECIPE_OPTIONS)


def _check_same_rows(output: Path, documents: Iterable[CellDocument]) -> None:
    """Refuse cells of a task that were not asked the same rows, or whose bits per byte are of another text."""
    asked: dict[tuple[str, str], tuple[set[str], str]] = {}
    for document in documents:
        rows = {figures.rows_sha256 for figures in document.subnets}
        known = asked.setdefault((document.model, document.task), (rows, document.general_text_sha256))
        if known != (rows, document.general_text_sha256) or len(rows) > 1:
            raise UsageError(
                "this cell was asked other rows or another text than those beside it",
                where=cell_file(output, document.name),
                remedy="Choose another --output, or remove the file to run the cell anew",
            )
