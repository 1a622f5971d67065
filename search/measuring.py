"""The objective of a run: its super-network, and the evaluation that its kind of model and its task call for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from search.objective import SubnetObjective
from search.opening import SearchInputs
from search.settings import SearchSettings
from shearling.elastic.super_network import assemble_super_network
from shearling.errors import UsageError
from shearling.evaluation.precision import resolve_precision
from shearling.run import Run


@dataclass(frozen=True)
class MeasuredTask:
    """An objective, and what it measures on.

    Attributes:
        objective: measures candidates.
        task: its name.
        rows: validation rows of an evaluation.
    """

    objective: SubnetObjective
    task: str
    rows: int


def build_objective(run: Run, settings: SearchSettings, inputs: SearchInputs) -> MeasuredTask:
    """Assemble the super-network and what evaluates it.

    Raises:
        UsageError: the settings name a task, and the model is a classifier.
        ArtefactError: the parts do not fit each other.
    """
    build = _measure_classes if inputs.is_classifier else _measure_answers
    return build(run, settings, inputs)


def _measure_answers(run: Run, settings: SearchSettings, inputs: SearchInputs) -> MeasuredTask:
    from shearling.evaluation.evaluator import Evaluator, torch_scorer

    if inputs.task is None:
        evaluator = Evaluator(str(settings.task), split="validation", limit=settings.limit)
    else:
        name = str(inputs.task.manifest.details["name"])
        evaluator = Evaluator(name, split="validation", include_path=run.task, limit=settings.limit)
    network = assemble_super_network(inputs.frozen, inputs.adapter)
    scorer = torch_scorer(
        network.model, network.tokenizer, batch_size=settings.batch_size, precision=settings.precision
    )
    objective = SubnetObjective(
        network, partial(evaluator.measure, scorer), cost=settings.cost, tokens=settings.macs_seq_len
    )
    return MeasuredTask(objective, evaluator.task, evaluator.rows)


def _measure_classes(run: Run, settings: SearchSettings, inputs: SearchInputs) -> MeasuredTask:
    from shearling.evaluation.classification import ClassifierEvaluator, TorchClassifier

    if inputs.task is None:
        raise UsageError(
            "a classifier answers the task of its run alone", where="--task", remedy="Leave the option out"
        )
    name = str(inputs.task.manifest.details["name"])
    evaluator = ClassifierEvaluator(
        run.task, name, split="validation", limit=settings.limit, batch_size=settings.batch_size
    )
    network = assemble_super_network(inputs.frozen, inputs.adapter)
    bf16 = resolve_precision(settings.precision) == "bf16"
    scorer = TorchClassifier(network.model, network.tokenizer, max_length=evaluator.max_length, bf16=bf16)
    objective = SubnetObjective(
        network, partial(evaluator.measure, scorer), cost=settings.cost, tokens=settings.macs_seq_len
    )
    return MeasuredTask(objective, evaluator.task, evaluator.rows)
