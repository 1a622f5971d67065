"""Several models on several tasks, side by side: what `shearling evaluate` measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from shearling.errors import UsageError
from shearling.evaluation.given_model import GivenModel, find_given_model
from shearling.evaluation.precision import Precision, resolve_precision
from shearling.evaluation.task import Split, TaskLocation, locate_task
from shearling.evaluation.task_evaluator import TaskEvaluator, open_evaluator
from shearling.model.head import Head
from shearling.strict_json import Document
from shearling.target import Target, parse_target

if TYPE_CHECKING:
    from shearling.evaluation.evaluator import OnRows


class Score(Document):
    """One model on one task.

    Attributes:
        directory: or GGUF file, with its settings, as the user gave it.
        task: its name, the split included.
        n: rows.
        rows_sha256: of them; equal digests prove that models answered the same questions.
        accuracy: share of right answers, 0 to 1.
        interval: Wilson, 95 %.
        loss: mean negative log-likelihood of the right answer, nats.
        bits_per_byte: of the raw texts; None where the task has none.
        sparsity: share of zeros in the linear layers of the transformer layers, counted in the weights; of an
            OpenVINO model what its export certified. None where it says nothing, and for a GGUF file.
        seconds: of the evaluation.
    """

    directory: str
    task: str
    n: int
    rows_sha256: str
    accuracy: float
    interval: tuple[float, float]
    loss: float | None
    bits_per_byte: float | None
    sparsity: float | None
    seconds: float


class Scoreboard(Document):
    """All scores of one command, task by task, and the models of each in the order in which they were given."""

    split: Split
    precision: str
    scores: tuple[Score, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Each once, in order."""
        return tuple(dict.fromkeys(score.task for score in self.scores))

    def on(self, task: str) -> tuple[Score, ...]:
        """The scores of one task."""
        return tuple(score for score in self.scores if score.task == task)


def parse_tasks(text: str) -> tuple[TaskLocation, ...]:
    """What `--tasks` means: `RUN/task` or names of harness tasks, comma separated.

    Raises:
        UsageError: it names none, or one twice.
        ArtefactMissing: a directory that is no task.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UsageError(
            "names no task" if not names else "names a task twice",
            where="--tasks",
            remedy="Give RUN/task or names of harness tasks, comma separated",
        )
    return tuple(locate_task(name) for name in names)


def score_models(
    targets: Sequence[Target | Path],
    *,
    tasks: Sequence[TaskLocation],
    split: Split,
    limit: int | None = None,
    batch_size: int = 64,
    precision: Precision = "auto",
) -> Scoreboard:
    """Measure models one after another; only one is in memory at a time, and it answers every task.

    Args:
        targets: Hugging Face model directories, such as `RUN/base` or `RUN/export/model`; OpenVINO ones, such as an
            export without the former; or GGUF files, by llama.cpp in the environment that they name.
        tasks: of a run, or any harness tasks whose data is on this machine.
        split: which of their rows.
        limit: the first rows only.
        batch_size: most rows of a batch; changes the time alone.
        precision: of the arithmetic in torch; auto is bf16 where the hardware has it. OpenVINO and llama.cpp keep their
            own default.

    Raises:
        ArtefactMissing: a directory holds no model, or a task has no data here.
        ModelUnsupported: a GGUF file without a vocabulary.
        PackageMissing: llama.cpp is not installed where a target says.
        UsageError: no such task or split, or a setting of a target that an evaluation does not honour.
    """
    models = [find_given_model(parse_target(target)) for target in targets]
    head = _common_head(models)
    evaluators = [
        open_evaluator(task, head=head, split=split, limit=limit, batch_size=batch_size, bits_per_byte=True)
        for task in tasks
    ]
    settled = resolve_precision(precision)
    by_model = [_score(given, evaluators, precision=settled) for given in models]
    scores = tuple(scores[place] for place in range(len(evaluators)) for scores in by_model)
    return Scoreboard(split=split, precision=settled, scores=scores)


def scoreboard_screen(board: Scoreboard) -> Table:
    """The scores as a table, one section a task."""
    rows = ", ".join(f"{task}, {board.on(task)[0].n} rows" for task in board.tasks)
    table = Table(title=f"{rows}, {board.precision}", title_justify="left")
    several = len(board.tasks) > 1
    if several:
        table.add_column("task", overflow="fold")
    table.add_column("model", overflow="fold")
    for heading in ("accuracy", "95 % interval", "bits per byte", "zeros"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task in board.tasks:
        for score in board.on(task):
            table.add_row(*([task] if several else []), *_cells(score))
        table.add_section()
    table.caption = "zeros: share in the linear layers of all transformer layers"
    return table


def _cells(score: Score) -> tuple[str, ...]:
    low, high = score.interval
    return (
        score.directory,
        f"{score.accuracy:.1%}",
        f"{low:.1%} to {high:.1%}",
        "" if score.bits_per_byte is None else f"{score.bits_per_byte:.3f}",
        "" if score.sparsity is None else f"{score.sparsity:.1%}",
    )


def _common_head(models: Sequence[GivenModel]) -> Head:
    heads = {given.head for given in models}
    if len(heads) > 1:
        odd = next(given for given in models if given.head != models[0].head)
        raise UsageError(
            "classifiers and language models answer a task in different ways, and are not compared",
            where=odd.target.label,
            remedy="Evaluate them apart",
        )
    return models[0].head


def _score(given: GivenModel, evaluators: Sequence[TaskEvaluator], *, precision: Precision) -> list[Score]:
    label, scores = given.target.label, []
    with given.load(precision) as model:
        for evaluator in evaluators:
            with _counting(f"evaluating {label} on {evaluator.task}", evaluator.rows) as on_rows:
                evaluation = model.measure(evaluator, on_rows)
            scores.append(
                Score(
                    directory=label,
                    task=evaluator.task,
                    n=evaluation.n,
                    rows_sha256=evaluation.rows_sha256,
                    accuracy=evaluation.accuracy,
                    interval=evaluation.interval,
                    loss=evaluation.loss,
                    bits_per_byte=evaluation.bits_per_byte,
                    sparsity=model.sparsity,
                    seconds=evaluation.seconds,
                )
            )
    return scores


@contextmanager
def _counting(title: str, total: int) -> Iterator[OnRows]:
    from shearling.console import progress

    with progress(title, total=total) as advance:
        counted = 0

        def on_rows(rows: int) -> None:
            # Bits per byte are measured on rows that were counted already.
            nonlocal counted
            for _ in range(min(rows, total - counted)):
                advance()
            counted = min(counted + rows, total)

        yield on_rows
