"""Whether rounding cost the task anything: the file in its runtime, and the merged model in float32, answer the same
validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.console import log
from shearling.evaluation.evaluator import Evaluation
from shearling.evaluation.paired_difference import paired_difference
from shearling.evaluation.task import has_rows, locate_task, read_rows
from shearling.evaluation.task_evaluator import TaskEvaluator, open_evaluator
from shearling.model.head import Head
from shearling.strict_json import Document

if TYPE_CHECKING:
    from torch import nn

MOST_ROWS, MOST_GENERATED_ROWS = 400, 50
"""A row whose answer is generated takes as long as hundreds that are scored."""
LARGEST_LOSS = 0.01
"""Of accuracy; a file breaks the gate that is worse by more, 95 % sure."""


class TaskCheck(Document):
    """Answers of a file against those of the merged model, row by row.

    Attributes:
        candidate: what was asked, such as `openvino`.
        task: name of the task and its split.
        n: rows.
        accuracy: of the file, in its runtime as users get it.
        reference_accuracy: of the merged model in float32, in torch.
        difference: the one less the other.
        interval: of the difference, 95 %, row by row.
        violation: what it breaks, in words; None is a pass.
    """

    candidate: str
    task: str
    n: int
    accuracy: float
    reference_accuracy: float
    difference: float
    interval: tuple[float, float]
    violation: str | None


@dataclass(frozen=True)
class TaskReference:
    """The merged model's answers.

    Attributes:
        evaluator: asks a file the same rows.
        evaluation: of the model.
    """

    evaluator: TaskEvaluator
    evaluation: Evaluation

    def check(self, candidate: str, evaluation: Evaluation) -> TaskCheck:
        """Judge a file's answers; said on the screen as well."""
        found = paired_difference(evaluation.answers, self.evaluation.answers)
        worse = found.interval[1] < -LARGEST_LOSS
        spread = f"{100 * found.interval[0]:+.1f} to {100 * found.interval[1]:+.1f}"
        said = f"{100 * found.mean:+.1f} points of accuracy ({spread}) on {found.n} validation rows"
        check = TaskCheck(
            candidate=candidate,
            task=evaluation.task,
            n=found.n,
            accuracy=evaluation.accuracy,
            reference_accuracy=self.evaluation.accuracy,
            difference=found.mean,
            interval=found.interval,
            violation=f"{said}: worse by more than {100 * LARGEST_LOSS:g} point" if worse else None,
        )
        log.print(f"task {candidate}: {said}: {'too much' if worse else 'ok'}")
        return check


def ask_reference(model: nn.Module, tokenizer: Any, task: Path, *, head: Head) -> TaskReference | None:
    """Ask the merged model the validation rows; None where the run has none.

    Args:
        model: eval mode; computes in float32.
        tokenizer: of the model.
        task: the run's `task` artefact, which need not exist.
        head: what the model is for.

    Raises:
        ArtefactMissing: the task lists validation rows that are not there.
    """
    if not has_rows(task, "validation"):
        return None
    rows = read_rows(task, "validation", most_characters=0)
    if not rows:
        return None
    most = MOST_ROWS if rows[0].answer is None else MOST_GENERATED_ROWS
    import torch

    from shearling.model.arithmetic import computed_in

    evaluator = open_evaluator(locate_task(str(task)), head=head, split="validation", limit=most)
    with computed_in(model, torch.float32):
        return TaskReference(evaluator, evaluator.on_torch(model, tokenizer, precision="fp32")())
