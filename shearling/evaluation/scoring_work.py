"""Scoring given models in workers: what an executor's worker opens, and what it does for one model and one task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shearling.evaluation.given_model import GivenModel, LoadedModel
from shearling.evaluation.precision import Precision
from shearling.evaluation.task import Split, TaskLocation
from shearling.evaluation.task_evaluator import TaskEvaluator, open_evaluator
from shearling.executors.executor import limit_threads
from shearling.model.head import Head

if TYPE_CHECKING:
    from shearling.evaluation.evaluator import Evaluation, OnRows


@dataclass(frozen=True)
class Scoring:
    """One model to be measured on one task.

    Attributes:
        given: with absolute paths.
        task: its place among the tasks.
    """

    given: GivenModel
    task: int

    @property
    def label(self) -> str:
        """What the user calls the model."""
        return self.given.target.label

    @classmethod
    def of(cls, given: GivenModel, task: int) -> Scoring:
        """For workers with other working directories."""
        environment = given.target.environment
        target = replace(given.target, environment=None if environment is None else environment.absolute())
        return cls(replace(given, target=target, path=given.path.resolve()), task)


@dataclass(frozen=True)
class ScoringWork:
    """Opens the tasks.

    Attributes:
        tasks: with absolute paths.
        head: what the models are for.
        precision: settled.
        threads: of a worker; None leaves them as they are.
    """

    tasks: tuple[TaskLocation, ...]
    head: Head
    split: Split
    limit: int | None
    batch_size: int
    precision: Precision
    threads: int | None

    def __call__(self) -> TaskScorer:
        """Load the tasks.

        Raises:
            ShearlingError: see `open_evaluator`.
        """
        limit_threads(self.threads)
        evaluators = [
            open_evaluator(
                task,
                head=self.head,
                split=self.split,
                limit=self.limit,
                batch_size=self.batch_size,
                bits_per_byte=True,
            )
            for task in self.tasks
        ]
        return TaskScorer(evaluators, self.precision)


class TaskScorer:
    """Measures models, one of them in memory at a time.

    Args:
        evaluators: of the tasks.
        precision: of the arithmetic in torch.
    """

    def __init__(self, evaluators: Sequence[TaskEvaluator], precision: Precision) -> None:
        self.evaluators = evaluators
        self._precision = precision
        self._held = ExitStack()
        self._given: GivenModel | None = None
        self._model: LoadedModel | None = None

    def __call__(self, scoring: Scoring, on_rows: OnRows | None = None) -> tuple[Evaluation, float | None]:
        """What a model scores on a task, and its share of zeros."""
        model = self._load(scoring.given)
        return model.measure(self.evaluators[scoring.task], on_rows or _unheard), model.sparsity

    def close(self) -> None:
        """Hold no model any more."""
        self._held.close()
        self._given = self._model = None

    def _load(self, given: GivenModel) -> LoadedModel:
        if self._model is None or given != self._given:
            self.close()
            self._model = self._held.enter_context(given.load(self._precision))
            self._given = given
        return self._model


def _unheard(_rows: int) -> None:
    """Nobody watches the rows of a worker."""
