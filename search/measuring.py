"""The objective of a run: its super-network, measured on the validation rows of its task, here or in workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from search.costing import CostCounter
from search.layer_forms import LayerForms
from search.objective import SubnetObjective
from search.opening import SearchInputs, open_inputs, open_run
from search.pieces import Piece, PieceOutcome
from search.row_split import RowSplit
from search.settings import SearchSettings, settled_cost
from search.stored_bytes import COUNTED, StoredForm
from shearling.elastic.super_network import SuperNetwork, assemble_super_network
from shearling.errors import ArtefactMismatch, ArtefactMissing, UsageError
from shearling.evaluation.precision import Precision, resolve_precision
from shearling.evaluation.task import TaskLocation, locate_task
from shearling.evaluation.task_evaluator import open_evaluator
from shearling.executors.executor import Workforce, limit_threads
from shearling.run import Run


@dataclass(frozen=True)
class MeasuredTask:
    """An objective, and what it measures on.

    Attributes:
        objective: measures candidates.
        task: its name.
        split: which of its rows choose.
        sha256: digest of the task, see `TaskEvaluator.sha256`.
    """

    objective: SubnetObjective
    task: str
    split: RowSplit
    sha256: str


SHARED = "Let every node see the same run directory at the same path"
"""What to do about workers that do not have what the process that leads the search has."""


@dataclass(frozen=True)
class WorkersObjective:
    """Opens the objective of a run in a worker, from the same directory as here; checked by digest.

    Attributes:
        run: the run directory, absolute.
        settings: with the precision settled, see `measured_precision`.
        parents: by role, the digest of the manifest of everything that candidates are made of and measured on.
        task_sha256: see `TaskEvaluator.sha256`; a task that is none of the run has no manifest.
        threads: of a worker.
        on_gpu: whether a device was given to it.
        files: all that is read, see `Shippable`.
        lean: see `build_objective`.
    """

    run: Path
    settings: SearchSettings
    parents: Mapping[str, str]
    task_sha256: str
    threads: int
    on_gpu: bool
    files: Mapping[str, Path]
    lean: bool = False

    @classmethod
    def of(
        cls,
        settings: SearchSettings,
        inputs: SearchInputs,
        workforce: Workforce,
        *,
        task_sha256: str,
        lean: bool = False,
    ) -> WorkersObjective:
        """What workers have to open for a search."""
        task = settings.task
        if task is not None and Path(task).exists():
            task = str(Path(task).resolve())
        return cls(
            run=inputs.adapter.path.parent.resolve(),
            settings=replace(settings, task=task),
            parents={role: parent.sha256 for role, parent in inputs.parents.items()},
            task_sha256=task_sha256,
            threads=workforce.threads_per_worker or 1,
            on_gpu=workforce.gpus_per_worker > 0,
            files=inputs.files,
            lean=lean,
        )

    def at(self, directory: Path) -> WorkersObjective:
        """See `Shippable`."""
        return replace(self, run=directory)

    def __call__(self) -> Callable[[Piece], PieceOutcome]:
        """Verify and load everything.

        Raises:
            ArtefactError: the run cannot be read here, or is another one.
        """
        limit_threads(self.threads)
        try:
            opened = open_run(Run(self.run)).mixed(ratios=self.settings.ratios, formats=self.settings.layer_formats)
            inputs = open_inputs(opened, task=self.settings.task)
        except (ArtefactMissing, OSError) as error:
            # The process that leads the search has just read it.
            message = error.message if isinstance(error, ArtefactMissing) else f"{type(error).__name__}: {error}"
            raise ArtefactMissing(f"a worker cannot read the run: {message}", where=self.run, remedy=SHARED) from error
        for role, parent in inputs.parents.items():
            if parent.sha256 != self.parents.get(role):
                raise _another(role, parent.path)
        device = "cuda" if self.on_gpu else None
        measured = build_objective(self.settings, inputs, device=device, leads=False, lean=self.lean)
        if measured.sha256 != self.task_sha256:
            raise _another("task", measured.task)
        return measured.objective.measure


def _another(role: str, where: Path | str) -> ArtefactMismatch:
    return ArtefactMismatch(
        f"the {role} of a worker has another content than that of the process that leads the search",
        where=where,
        remedy=SHARED,
    )


def measured_precision(requested: Precision, workforce: Workforce) -> Precision:
    """The arithmetic of a search, settled once for all who measure, since processors differ."""
    on_gpu = workforce.gpus_per_worker > 0 or (workforce.entry.in_process and training_device() is not None)
    return resolve_precision(requested, device="cuda" if on_gpu else "cpu")


def training_device() -> str | None:
    """Where the Trainer would compute, and a search that has no workers does as well; None is the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else None


def build_objective(
    settings: SearchSettings,
    inputs: SearchInputs,
    *,
    device: str | None = None,
    leads: bool = True,
    lean: bool = False,
) -> MeasuredTask:
    """Assemble the super-network and what evaluates it.

    Args:
        settings: of the search.
        inputs: what candidates are made of and measured on.
        device: to measure on; None leaves the network where it was loaded.
        leads: whether this process counts what candidates cost; a worker measures alone.
        lean: in less memory and more time, the same numbers.

    Raises:
        UsageError: the settings name a task of the harness, and the model is a classifier; or there is no such task, or
            it has no such split; or another number format than that of the latency table.
        ArtefactError: the parts do not fit each other.
    """
    task = inputs.task
    location = (
        locate_task(str(settings.task)) if task is None else TaskLocation(str(task.manifest.details["name"]), task.path)
    )
    evaluator = open_evaluator(location, head=inputs.head, split=settings.split, batch_size=settings.batch_size)
    split = RowSplit.of(evaluator.row_digests, limit=settings.limit)
    network = assemble_super_network(inputs.frozen, inputs.adapter, inputs.space, lean=lean, variants=inputs.variants)
    counter = _counter(network, settings, inputs) if leads else None
    if device is not None:
        network.model.to(device)
    evaluate = evaluator.on_torch(network.model, network.tokenizer, precision=settings.precision)
    objective = SubnetObjective(network, evaluate, split, counter=counter, cost=settled_cost(settings))
    return MeasuredTask(objective, evaluator.task, split, evaluator.sha256)


def _counter(network: SuperNetwork, settings: SearchSettings, inputs: SearchInputs) -> CostCounter:
    table, given = inputs.latency, StoredForm()
    if settings.layer_formats:
        # What is no layer, such as an embedding, has eight bits in either.
        settings = replace(settings, weight_format="int4")
    if table is not None:
        table.check_covers(LayerForms(network).every())
        conditions = table.document.conditions
        given = StoredForm(
            "int4" if settings.layer_formats and conditions.weight_format == "int8" else conditions.weight_format,
            conditions.sparse_kernel,
            conditions.group_size or given.group_size,
        )
    stored = StoredForm(
        given.weight_format if settings.weight_format is None else settings.weight_format,
        given.sparse_kernel if settings.sparse_kernel is None else settings.sparse_kernel,
        given.group_size,
    )
    if table is not None and stored != given:
        raise UsageError(
            f"the latency table is of {given}, bytes are to be those of {stored}",
            where="--weight-format",
            remedy="Leave the option out, or measure a table of an export in that form",
        )
    if stored.weight_format not in COUNTED and settled_cost(settings) == "bytes":
        raise UsageError(
            f"the bytes of {stored.weight_format} are not known here",
            where="--weight-format",
            remedy=f"They are of {', '.join(COUNTED)}",
        )
    return CostCounter(network, tokens=settings.macs_seq_len, stored=stored, latency=table)
