"""The objective of a run: its super-network, measured on the validation rows of its task, here or in workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from search.objective import SubnetObjective
from search.opening import SearchInputs, open_inputs, open_run
from search.pieces import Piece, PieceOutcome
from search.row_split import RowSplit
from search.settings import SearchSettings
from shearling.elastic.super_network import assemble_super_network
from shearling.errors import ArtefactMismatch, ArtefactMissing, UsageError
from shearling.evaluation.precision import resolve_precision
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
    """

    objective: SubnetObjective
    task: str
    split: RowSplit


SHARED = "Let every node see the same run directory at the same path"
"""What to do about workers that do not have what the process that leads the search has."""


@dataclass(frozen=True)
class WorkersObjective:
    """Opens the objective of a run in a worker, from the same directory as here; checked by digest.

    Attributes:
        run: the run directory, absolute.
        settings: with the precision settled, since processors differ.
        parents: by role, the digest of the manifest of everything that candidates are made of and measured on.
        threads: of a worker.
        on_gpu: whether a device was given to it.
        files: all that is read, see `Shippable`.
    """

    run: Path
    settings: SearchSettings
    parents: Mapping[str, str]
    threads: int
    on_gpu: bool
    files: Mapping[str, Path]

    @classmethod
    def of(cls, settings: SearchSettings, inputs: SearchInputs, workforce: Workforce) -> WorkersObjective:
        """What workers have to open for a search."""
        task = settings.task
        if task is not None and Path(task).exists():
            task = str(Path(task).resolve())
        return cls(
            run=inputs.adapter.path.parent.resolve(),
            settings=replace(settings, task=task, precision=resolve_precision(settings.precision)),
            parents={role: parent.sha256 for role, parent in inputs.parents.items()},
            threads=workforce.threads_per_worker or 1,
            on_gpu=workforce.gpus_per_worker > 0,
            files=inputs.files,
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
            inputs = open_inputs(open_run(Run(self.run)), task=self.settings.task)
        except (ArtefactMissing, OSError) as error:
            # The process that leads the search has just read it.
            message = error.message if isinstance(error, ArtefactMissing) else f"{type(error).__name__}: {error}"
            raise ArtefactMissing(f"a worker cannot read the run: {message}", where=self.run, remedy=SHARED) from error
        for role, parent in inputs.parents.items():
            if parent.sha256 != self.parents.get(role):
                raise ArtefactMismatch(
                    f"the {role} of a worker has another content than that of the process that leads the search",
                    where=parent.path,
                    remedy=SHARED,
                )
        return build_objective(self.settings, inputs, device="cuda" if self.on_gpu else None).objective.measure


def check_cost(settings: SearchSettings, workforce: Workforce) -> None:
    """Refuse to save what workers would not agree on.

    Raises:
        UsageError: the time of a forward is to be saved, and several processes would take it.
    """
    if settings.cost == "latency" and not workforce.entry.in_process:
        raise UsageError(
            "a latency that several workers measure depends on which of them did",
            where=f"--executor {workforce.executor}",
            remedy="Search with --executor local, or save macs or parameters",
        )


def build_objective(settings: SearchSettings, inputs: SearchInputs, *, device: str | None = None) -> MeasuredTask:
    """Assemble the super-network and what evaluates it.

    Args:
        settings: of the search.
        inputs: what candidates are made of and measured on.
        device: to measure on; None leaves the network where it was loaded.

    Raises:
        UsageError: the settings name a task of the harness, and the model is a classifier; or there is no such task, or
            it has no such split.
        ArtefactError: the parts do not fit each other.
    """
    task = inputs.task
    location = (
        locate_task(str(settings.task)) if task is None else TaskLocation(str(task.manifest.details["name"]), task.path)
    )
    evaluator = open_evaluator(location, head=inputs.head, split=settings.split, batch_size=settings.batch_size)
    split = RowSplit.of(evaluator.row_digests, limit=settings.limit)
    network = assemble_super_network(inputs.frozen, inputs.adapter, inputs.space)
    if device is not None:
        network.model.to(device)
    evaluate = evaluator.on_torch(network.model, network.tokenizer, precision=settings.precision)
    objective = SubnetObjective(network, evaluate, split, cost=settings.cost, tokens=settings.macs_seq_len)
    return MeasuredTask(objective, evaluator.task, split)
