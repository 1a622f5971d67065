"""Several model directories on one task, side by side: what `shearling evaluate` measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from shearling.errors import ArtefactMissing, UsageError
from shearling.evaluation.precision import Precision, resolve_precision
from shearling.evaluation.task import Split
from shearling.model.checkpoint_safety import CONFIG
from shearling.model.head import names_classifier
from shearling.strict_json import Document, read_json

if TYPE_CHECKING:
    from shearling.evaluation.classification import ClassifierEvaluator
    from shearling.evaluation.evaluator import Evaluation, Evaluator, OnRows

OPENVINO_MODEL = "openvino_model.xml"


class Score(Document):
    """One model on one task.

    Attributes:
        directory: as the user gave it.
        n: rows.
        accuracy: share of right answers, 0 to 1.
        interval: Wilson, 95 %.
        loss: mean negative log-likelihood of the right answer, nats.
        bits_per_byte: of the raw texts; None where the task has none.
        sparsity: share of zeros in the linear layers of the transformer layers, counted in the weights; of an
            OpenVINO model what its export certified, None where it says nothing.
        seconds: of the evaluation.
    """

    directory: str
    n: int
    accuracy: float
    interval: tuple[float, float]
    loss: float | None
    bits_per_byte: float | None
    sparsity: float | None
    seconds: float


class Scoreboard(Document):
    """All scores of one command; `rows_sha256` proves that every model answered the same questions."""

    task: str
    split: Split
    precision: str
    rows_sha256: str
    scores: tuple[Score, ...]


def score_models(
    directories: Sequence[Path],
    *,
    task: str,
    split: Split,
    limit: int | None = None,
    batch_size: int = 64,
    precision: Precision = "auto",
) -> Scoreboard:
    """Measure models one after another; only one is in memory at a time.

    Args:
        directories: Hugging Face model directories, such as `RUN/base` or `RUN/export/model`; or OpenVINO ones, such
            as an export without the former.
        task: a `task` artefact, or the name of any harness task whose data is on this machine.
        split: which of its rows.
        limit: the first rows only.
        batch_size: most rows of a batch; changes the time alone.
        precision: of the arithmetic in torch; auto is bf16 where the hardware has it. OpenVINO keeps its own default.

    Raises:
        ArtefactMissing: a directory holds no model, or the task has no data here.
        UsageError: no such task or split.
    """
    models = [_model_directory(path) for path in directories]
    include, name = _locate_task(task)
    evaluator = _evaluator(models, include, name, split=split, limit=limit, batch_size=batch_size)
    settled = resolve_precision(precision)
    scores, digests = [], []
    for given, model in zip(directories, models, strict=True):
        score, digest = _score(given, model, evaluator, batch_size=batch_size, precision=settled)
        scores.append(score)
        digests.append(digest)
    return Scoreboard(task=evaluator.task, split=split, precision=settled, rows_sha256=digests[0], scores=tuple(scores))


def scoreboard_screen(board: Scoreboard) -> Table:
    """The scores as a table."""
    table = Table(title=f"{board.task}, {board.scores[0].n} rows, {board.precision}", title_justify="left")
    table.add_column("model", overflow="fold")
    for heading in ("accuracy", "95 % interval", "bits per byte", "zeros"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in board.scores:
        low, high = score.interval
        bits = "" if score.bits_per_byte is None else f"{score.bits_per_byte:.3f}"
        table.add_row(
            score.directory,
            f"{score.accuracy:.1%}",
            f"{low:.1%} to {high:.1%}",
            bits,
            "" if score.sparsity is None else f"{score.sparsity:.1%}",
        )
    table.caption = "zeros: share in the linear layers of all transformer layers"
    return table


def _model_directory(path: Path) -> Path:
    for candidate in (path, path / "model", path / "openvino"):
        if (candidate / "config.json").is_file():
            return candidate
    raise ArtefactMissing(
        "no model here", where=path, remedy="Give RUN/base, RUN/sparse, RUN/export or any model directory"
    )


def _locate_task(task: str) -> tuple[Path | None, str]:
    facts = Path(task) / "task.json"
    if facts.is_file():
        return Path(task), str(read_json(facts)["name"])
    if Path(task).exists():
        raise ArtefactMissing(
            "not a task artefact: task.json is missing",
            where=task,
            remedy="Give RUN/task, or the name of a harness task",
        )
    return None, task


def _evaluator(
    models: Sequence[Path], include: Path | None, name: str, *, split: Split, limit: int | None, batch_size: int
) -> Evaluator | ClassifierEvaluator:
    from shearling.evaluation.classification import ClassifierEvaluator
    from shearling.evaluation.evaluator import Evaluator

    kinds = {names_classifier(read_json(model / CONFIG)) for model in models}
    if kinds == {False}:
        return Evaluator(name, split=split, include_path=include, limit=limit, bits_per_byte=include is not None)
    if len(kinds) > 1 or include is None:
        raise UsageError(
            "classifiers answer the task of their run, and only beside each other",
            where="--task",
            remedy="Give RUN/task",
        )
    return ClassifierEvaluator(include, name, split=split, limit=limit, batch_size=batch_size)


def _score(
    given: Path, model_path: Path, evaluator: Evaluator | ClassifierEvaluator, *, batch_size: int, precision: Precision
) -> tuple[Score, str]:
    from shearling.console import progress

    with progress(f"evaluating {given}", total=evaluator.rows) as advance:
        counted = 0

        def on_rows(rows: int) -> None:
            nonlocal counted
            for _ in range(min(rows, evaluator.rows - counted)):
                advance()
            counted = min(counted + rows, evaluator.rows)

        measure = _measure_openvino if (model_path / OPENVINO_MODEL).is_file() else _measure_torch
        evaluation, sparsity = measure(
            model_path, evaluator, batch_size=batch_size, precision=precision, on_rows=on_rows
        )
    score = Score(
        directory=str(given),
        n=evaluation.n,
        accuracy=evaluation.accuracy,
        interval=evaluation.interval,
        loss=evaluation.loss,
        bits_per_byte=evaluation.bits_per_byte,
        sparsity=sparsity,
        seconds=evaluation.seconds,
    )
    return score, evaluation.rows_sha256


def _measure_torch(
    path: Path, evaluator: Evaluator | ClassifierEvaluator, *, batch_size: int, precision: Precision, on_rows: OnRows
) -> tuple[Evaluation, float]:
    from shearling.evaluation.classification import ClassifierEvaluator, TorchClassifier
    from shearling.evaluation.evaluator import torch_scorer
    from shearling.model.checkpoint import load_model, load_tokenizer
    from shearling.model.layers import find_layers

    model, tokenizer = load_model(path), load_tokenizer(path)
    weights = [linear.weight for linear in find_layers(model).linears().values()]
    total = sum(weight.numel() for weight in weights)
    sparsity = 1 - sum(int(weight.count_nonzero()) for weight in weights) / total
    if isinstance(evaluator, ClassifierEvaluator):
        classifier = TorchClassifier(
            model, tokenizer, max_length=evaluator.max_length, bf16=precision == "bf16", on_rows=on_rows
        )
        return evaluator.measure(classifier), sparsity
    return evaluator.measure(
        torch_scorer(model, tokenizer, batch_size=batch_size, precision=precision, on_rows=on_rows)
    ), sparsity


def _measure_openvino(
    path: Path, evaluator: Evaluator | ClassifierEvaluator, *, batch_size: int, precision: Precision, on_rows: OnRows
) -> tuple[Evaluation, float | None]:
    from shearling.evaluation.classification import ClassifierEvaluator, OpenVINOClassifier
    from shearling.evaluation.evaluator import openvino_scorer
    from shearling.kernel.openvino_extension import core_for
    from shearling.model.checkpoint import load_tokenizer

    xml, tokenizer = path / OPENVINO_MODEL, load_tokenizer(path)
    if isinstance(evaluator, ClassifierEvaluator):
        evaluation = evaluator.measure(
            OpenVINOClassifier(xml, tokenizer, max_length=evaluator.max_length, on_rows=on_rows)
        )
    else:
        evaluation = evaluator.measure(openvino_scorer(xml, tokenizer, batch_size=batch_size, on_rows=on_rows))
    # What the export counted and certified.
    model, share = core_for(xml).read_model(xml), ["sparsity", "share"]
    return evaluation, float(model.get_rt_info(share).astype(str)) if model.has_rt_info(share) else None
