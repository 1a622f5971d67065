"""Several models on several tasks, side by side: what `shearling evaluate` measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from shearling.console import log
from shearling.errors import UsageError
from shearling.evaluation.given_model import GivenModel, find_given_model
from shearling.evaluation.precision import Precision, resolve_precision
from shearling.evaluation.scoring_work import Scoring, ScoringWork
from shearling.evaluation.task import Split, TaskLocation, locate_task
from shearling.executors.executor import Job, Workforce, check_workforce, make_executor
from shearling.model.head import Head
from shearling.strict_json import Document, read_json, validate_document
from shearling.target import Target, parse_target

if TYPE_CHECKING:
    from shearling.evaluation.evaluator import Evaluation, OnRows

LOCAL = Workforce()


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
        model_format: which of the formats in the directory was measured; None in documents from before it was kept.
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
    model_format: str | None = None


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


def read_scoreboard(path: Path) -> Scoreboard:
    """What `shearling evaluate --json` printed."""
    answer = read_json(path)
    answer.pop("status", None)
    return validate_document(answer, Scoreboard, where=path)


def parse_tasks(text: str) -> tuple[TaskLocation, ...]:
    """What `--tasks` means: `RUN/task` or names of harness tasks, comma separated.

    Raises:
        UsageError: it names none, or one twice, or two of one name.
        ArtefactMissing: a directory that is no task.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UsageError(
            "names no task" if not names else "names a task twice",
            where="--tasks",
            remedy="Give RUN/task or names of harness tasks, comma separated",
        )
    tasks = tuple(locate_task(name) for name in names)
    called = [task.name for task in tasks]
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two tasks are called {twice}, and their scores could not be told apart",
            where="--tasks",
            remedy="Evaluate them one after the other",
        )
    return tasks


def score_models(
    targets: Sequence[Target | Path],
    *,
    tasks: Sequence[TaskLocation],
    split: Split,
    limit: int | None = None,
    batch_size: int = 64,
    precision: Precision = "auto",
    workforce: Workforce = LOCAL,
) -> Scoreboard:
    """Measure models one after another, or several at a time on workers; only one is in the memory of each.

    Args:
        targets: Hugging Face model directories, such as `RUN/base` or `RUN/export/model`; OpenVINO ones, such as an
            export without the former; or GGUF files, by llama.cpp in the environment that they name.
        tasks: of a run, or any harness tasks whose data is on this machine.
        split: which of their rows.
        limit: the first rows only.
        batch_size: most rows of a batch; changes the time alone.
        precision: of the arithmetic in torch; auto is bf16 where the hardware has it. OpenVINO and llama.cpp keep their
            own default; packed files are loaded as `serve` loads them.
        workforce: what measures; makes no difference to what is found, but for llama.cpp and OpenVINO, which have
            threads of their own.

    Raises:
        ArtefactMissing: a directory holds no model, or a task has no data here.
        ArtefactCorrupt: what is read of a model or a task differs from its manifest.
        ModelUnsupported: a GGUF file without a vocabulary.
        PackageMissing: llama.cpp is not installed where a target says.
        UsageError: no such task or split, a setting of a target that an evaluation does not honour, or devices
            for its workers.
    """
    check_workforce(workforce)
    if workforce.gpus_per_worker:
        raise UsageError(
            "an evaluation of given models computes on processors alone",
            where="--gpus-per-worker",
            remedy="Leave it out: devices would be held, and not used",
        )
    models = [find_given_model(parse_target(target)) for target in targets]
    settled = resolve_precision(precision, device="cpu")
    work = ScoringWork(
        tasks=tuple(_absolute(task) for task in tasks),
        head=_common_head(models),
        split=split,
        limit=limit,
        batch_size=batch_size,
        precision=settled,
        threads=workforce.threads_per_worker,
    )
    wanted = [Scoring.of(given, place) for given in models for place in range(len(tasks))]
    measure = _score_here if workforce.entry.in_process else _score_by_workers
    found: dict[int, Score] = {}

    def board() -> Scoreboard:
        by_task = sorted(found, key=lambda place: (wanted[place].task, place))
        return Scoreboard(split=split, precision=settled, scores=tuple(found[place] for place in by_task))

    try:
        found.update(measure(wanted, work, workforce))
    except BaseException:
        if found:
            log.print("measured before this ended:", scoreboard_screen(board()), sep="\n")
        raise
    return board()


def scoreboard_screen(board: Scoreboard) -> Table:
    """The scores as a table, one section a task."""
    rows = ", ".join(f"{task}, {board.on(task)[0].n} rows" for task in board.tasks)
    # Of what other runtimes compute, the files and their machine decide.
    table = Table(title=escape(f"{rows}; what torch computes is {board.precision}"), title_justify="left")
    several = len(board.tasks) > 1
    if several:
        table.add_column("task", overflow="fold")
    table.add_column("model", overflow="fold")
    for heading in ("accuracy", "95 % interval", "bits per byte", "zeros"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task in board.tasks:
        for score in board.on(task):
            table.add_row(*([escape(task)] if several else []), *_cells(score))
        table.add_section()
    table.caption = "zeros: share in the linear layers of all transformer layers"
    return table


def _cells(score: Score) -> tuple[str, ...]:
    low, high = score.interval
    return (
        escape(score.directory),
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


def _score_here(wanted: Sequence[Scoring], work: ScoringWork, _workforce: Workforce) -> Iterator[tuple[int, Score]]:
    scorer = work()
    with closing(scorer):
        for place, scoring in enumerate(wanted):
            evaluator = scorer.evaluators[scoring.task]
            with _counting(f"evaluating {scoring.label} on {evaluator.task}", evaluator.rows) as on_rows:
                score = _told(scoring, *scorer(scoring, on_rows))
            yield place, score


def _score_by_workers(
    wanted: Sequence[Scoring], work: ScoringWork, workforce: Workforce
) -> Iterator[tuple[int, Score]]:
    from shearling.console import progress

    with (
        closing(make_executor(workforce, work)) as executor,
        progress(f"evaluating on {min(executor.workers, len(wanted))} workers", total=len(wanted)) as advance,
    ):
        for place, (evaluation, sparsity) in executor.run([Job(scoring, key=scoring.label) for scoring in wanted]):
            yield place, _told(wanted[place], evaluation, sparsity)
            advance(note=f"{evaluation.accuracy:.1%} of {wanted[place].label} on {evaluation.task}")


def _told(scoring: Scoring, evaluation: Evaluation, sparsity: float | None) -> Score:
    return Score(
        directory=scoring.label,
        task=evaluation.task,
        n=evaluation.n,
        rows_sha256=evaluation.rows_sha256,
        accuracy=evaluation.accuracy,
        interval=evaluation.interval,
        loss=evaluation.loss,
        bits_per_byte=evaluation.bits_per_byte,
        sparsity=sparsity,
        seconds=evaluation.seconds,
        model_format=scoring.given.format,
    )


def _absolute(task: TaskLocation) -> TaskLocation:
    return task if task.directory is None else replace(task, directory=task.directory.absolute())


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
