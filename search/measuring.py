"""The objective of a run: its super-network, measured on the validation rows of its task."""

from __future__ import annotations

from dataclasses import dataclass

from search.objective import SubnetObjective
from search.opening import SearchInputs
from search.row_split import RowSplit
from search.settings import SearchSettings
from shearling.elastic.super_network import assemble_super_network
from shearling.evaluation.task import TaskLocation, locate_task
from shearling.evaluation.task_evaluator import open_evaluator


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


def build_objective(settings: SearchSettings, inputs: SearchInputs) -> MeasuredTask:
    """Assemble the super-network and what evaluates it.

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
    evaluate = evaluator.on_torch(network.model, network.tokenizer, precision=settings.precision)
    objective = SubnetObjective(network, evaluate, split, cost=settings.cost, tokens=settings.macs_seq_len)
    return MeasuredTask(objective, evaluator.task, split)
