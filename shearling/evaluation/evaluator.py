"""Accuracy and bits per byte, by lm-evaluation-harness: on a torch model, a super-network, an exported OpenVINO model
or a GGUF file.

    evaluator = Evaluator("sarcasm", split="validation", include_path=RUN / "task")
    evaluation = evaluator.on_torch(model, tokenizer, precision="fp32")()

`task` is a task of the run, or any task name that the harness knows and whose data is on this machine.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shearling.errors import UsageError
from shearling.evaluation.confidence import wilson_interval
from shearling.evaluation.harness_tasks import SOURCE, check_answers, digest_document, load_harness_task
from shearling.evaluation.lm_eval_task import CHAT, answer_task, text_task
from shearling.evaluation.precision import Precision, resolve_precision
from shearling.evaluation.task import Split

if TYPE_CHECKING:
    from torch import nn

    from shearling.evaluation.causal_scorer import CausalScorer
    from shearling.evaluation.llama_cpp_process import LlamaCppProcess

ACCURACY_METRICS = ("acc", "exact_match", "acc_norm", "pass@1", "f1", "rougeL", "rouge1", "rouge2")
"""What counts as accuracy, the first that a task reports."""

TEXT_ROWS = 500
"""Rows whose text is measured in bits per byte. Every token counts there, so that it settles on fewer rows than an
accuracy does."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

OnRows = Callable[[int], None]
"""Called with the number of rows after each batch."""


@dataclass(frozen=True)
class Evaluation:
    """What one model scores on one task.

    Attributes:
        task: name of the harness task.
        n: rows.
        accuracy: share of right answers, 0 to 1.
        accuracy_stderr: as the harness gives it.
        interval: Wilson score interval, 95 %.
        loss: mean negative log-likelihood of the right answer, nats; None where the task does not show it.
        bits_per_byte: of the raw text; None where it was not asked for or the task has none.
        seconds: wall time.
        rows_sha256: of the evaluated rows; equal digests mean equal questions.
        answers: per row what the metric says, 0 to 1, in the order of the rows; for paired comparisons.
        losses: per row the negative log-likelihood of the right answer, nats; None where `loss` is.
    """

    task: str
    n: int
    accuracy: float
    accuracy_stderr: float | None
    interval: tuple[float, float]
    loss: float | None
    bits_per_byte: float | None
    seconds: float
    rows_sha256: str
    answers: tuple[float, ...]
    losses: tuple[float, ...] | None


class Measure(Protocol):
    """Measures the model that it was made for; again after the model has changed."""

    def __call__(self, places: Sequence[int] | None = None) -> Evaluation:
        """Evaluate on all rows, or on those at some places of the split, at least one and in that order."""
        ...


class Evaluator:
    """A task, loaded once and measured on any number of models.

    Args:
        task: a task of `include_path` without its split suffix, or any harness task.
        split: which rows; a harness task is measured on these or refused, never silently on others.
        include_path: directory of task files, such as `RUN/task`.
        limit: the first rows only.
        bits_per_byte: also measure the raw text of the first `TEXT_ROWS` rows, where the task has it.
        batch_size: most rows of a batch; changes the time, and the result by rounding only.

    Raises:
        UsageError: no such task, or it has no such split, or it is a group of tasks, or it reports no accuracy.
        ArtefactMissing: its data is not on this machine.
        DocumentInvalid: its file or its data is faulty, or no row has a right answer.
    """

    def __init__(
        self,
        task: str,
        *,
        split: Split,
        include_path: Path | None = None,
        limit: int | None = None,
        bits_per_byte: bool = False,
        batch_size: int = 64,
    ) -> None:
        self.limit = limit
        self.batch_size = batch_size
        with _silence():
            self._answers = load_harness_task(
                task, split=split, include_path=include_path, name=answer_task(task, split)
            )
            reported = self._answers.aggregation()
            if not any(metric in reported for metric in ACCURACY_METRICS):
                raise _no_accuracy(reported, self.task)
            self._text = None
            if (
                bits_per_byte
                and include_path is not None
                and (include_path / f"{text_task(task, split)}.yaml").is_file()
            ):
                self._text = load_harness_task(
                    task, split=split, include_path=include_path, name=text_task(task, split)
                )
        rows = len(self._answers.eval_docs)
        self.rows = rows if limit is None else min(rows, limit)
        check_answers(self._answers, self.rows)

    @functools.cached_property
    def row_digests(self) -> tuple[str, ...]:
        """Per row the sha256 of its content."""
        documents = (self._answers.eval_docs[place] for place in range(self.rows))
        return tuple(digest_document(document) for document in documents)

    @functools.cached_property
    def sha256(self) -> str:
        """See `TaskEvaluator.sha256`."""
        config = self._answers.config.to_dict()
        # Where the files lie is no part of the question.
        metadata = {name: value for name, value in (config.pop("metadata", None) or {}).items() if name != SOURCE}
        asked = {name: value for name, value in config.items() if name not in ("dataset_path", "dataset_kwargs")}
        # A function without a source is named by its address.
        text = _ADDRESS.sub("", json.dumps([asked, metadata], default=str))
        with _silence():
            examples = self._answers.fewshot_docs() if config.get("num_fewshot") else None
        drawn_from = (digest_document(document) for document in examples or ())
        return hashlib.sha256("".join((text, *self.row_digests, *drawn_from)).encode()).hexdigest()

    @property
    def task(self) -> str:
        """Name of the harness task."""
        return str(self._answers.config.task)

    def on_torch(
        self, model: nn.Module, tokenizer: Any, *, precision: Precision, on_rows: OnRows | None = None
    ) -> Measure:
        """See `TaskEvaluator.on_torch`; the model is a decoder."""
        scorer = torch_scorer(model, tokenizer, batch_size=self.batch_size, precision=precision, on_rows=on_rows)
        return functools.partial(self.measure, scorer)

    def on_openvino(self, compiled: Any, tokenizer: Any, *, max_length: int, on_rows: OnRows | None = None) -> Measure:
        """See `TaskEvaluator.on_openvino`.

        Raises:
            ModelUnsupported: the model is not a stateful decoder.
        """
        from shearling.evaluation.openvino_scorer import OpenVINOScorer

        scorer = OpenVINOScorer(compiled, tokenizer, max_length=max_length, batch_size=self.batch_size, on_rows=on_rows)
        return functools.partial(self.measure, scorer)

    def on_onnx(self, session: Any, tokenizer: Any, *, max_length: int, on_rows: OnRows | None = None) -> Measure:
        """See `TaskEvaluator.on_onnx`.

        Raises:
            ModelUnsupported: the model is not a decoder with its cache as inputs and outputs.
        """
        from shearling.evaluation.onnx_scorer import OnnxScorer

        scorer = OnnxScorer(session, tokenizer, max_length=max_length, batch_size=self.batch_size, on_rows=on_rows)
        return functools.partial(self.measure, scorer)

    def on_llama_cpp(self, process: LlamaCppProcess, tokenizer: Any, *, on_rows: OnRows | None = None) -> Measure:
        """See `TaskEvaluator.on_llama_cpp`."""
        from shearling.evaluation.llama_cpp_scorer import LlamaCppScorer

        scorer = LlamaCppScorer(process, tokenizer, batch_size=self.batch_size, on_rows=on_rows)
        return functools.partial(self.measure, scorer)

    def measure(self, scorer: CausalScorer, places: Sequence[int] | None = None) -> Evaluation:
        """Evaluate one model.

        Args:
            scorer: the model.
            places: of the rows, at least one, each once; None takes all. Bits per byte are of the first rows anyway.

        Raises:
            UsageError: the task reports no accuracy after all, or needs what this scorer cannot do.
        """
        started_s = time.perf_counter()
        scorer.written_by_template = bool((self._answers.config.metadata or {}).get(CHAT))
        # Standard errors of means are closed forms; only other metrics are bootstrapped.
        results = _run(scorer, self._answers, self.limit, bootstrap=100, places=places)
        samples = results["samples"][self.task]
        accuracy, stderr, metric, key = _accuracy(results["results"][self.task], self.task)
        samples = [sample for sample in samples if sample["filter"] == key]
        if places is not None:
            at = dict(zip(sorted(places), samples, strict=True))
            samples = [at[place] for place in places]
        answers = tuple(float(sample[metric]) for sample in samples if isinstance(sample[metric], int | float))
        _check_shares((accuracy, *answers), metric, self.task)
        losses = _losses(samples)
        bits_per_byte = None
        if self._text is not None:
            name = str(self._text.config.task)
            bits_per_byte = float(
                _run(scorer, self._text, min(self.rows, TEXT_ROWS), bootstrap=0)["results"][name]["bits_per_byte,none"]
            )
        return Evaluation(
            task=self.task,
            n=len(samples),
            accuracy=accuracy,
            accuracy_stderr=stderr,
            interval=wilson_interval(accuracy, len(samples)),
            loss=math.fsum(losses) / len(losses) if losses else None,
            bits_per_byte=bits_per_byte,
            seconds=time.perf_counter() - started_s,
            rows_sha256=hashlib.sha256("".join(sample["doc_hash"] for sample in samples).encode()).hexdigest(),
            answers=answers,
            losses=losses,
        )


def torch_scorer(
    model: nn.Module,
    tokenizer: Any,
    *,
    batch_size: int = 64,
    precision: Precision = "fp32",
    on_rows: OnRows | None = None,
) -> CausalScorer:
    """A torch model as the harness sees it.

    Args:
        model: a Hugging Face decoder in eval mode.
        tokenizer: of the model.
        batch_size: most rows of a batch; changes the time, and the result by rounding only.
        precision: bf16 is autocast with a float32 vocabulary projection; auto takes it where the hardware has it.
        on_rows: called with the number of rows after each batch.
    """
    from shearling.evaluation.torch_scorer import TorchScorer

    bf16 = resolve_precision(precision, device=next(model.parameters()).device.type) == "bf16"
    return TorchScorer(model, tokenizer, batch_size=batch_size, bf16=bf16, on_rows=on_rows)


def _run(
    scorer: CausalScorer, task: Any, limit: int | None, *, bootstrap: int, places: Sequence[int] | None = None
) -> Mapping[str, Any]:
    from lm_eval import evaluator

    name = task.config.task
    # The harness takes the rows in their own order, whatever the order of their places.
    rows = {"limit": limit} if places is None else {"samples": {name: sorted(places)}}
    with _silence():
        results = evaluator.evaluate(
            scorer, {"tasks": {name: task}}, bootstrap_iters=bootstrap, log_samples=True, **rows
        )
    if results is None:
        raise UsageError("the harness returned nothing: evaluate in the main process", where=str(name))
    return results


def _accuracy(results: Mapping[str, Any], task: str) -> tuple[float, float | None, str, str]:
    for metric in ACCURACY_METRICS:
        for key, value in results.items():
            name, _, filtered = key.partition(",")
            if name == metric and isinstance(value, int | float):
                stderr = results.get(f"{metric}_stderr,{filtered}")
                return float(value), float(stderr) if isinstance(stderr, int | float) else None, metric, filtered
    raise _no_accuracy((key for key in results if "," in key), task)


def _no_accuracy(reported: Iterable[str], task: str) -> UsageError:
    return UsageError(
        f"reports no accuracy, only {', '.join(sorted(reported))}",
        where=f"task {task}",
        remedy=f"Use a task with one of {', '.join(ACCURACY_METRICS)}",
    )


def _check_shares(values: Sequence[float], metric: str, task: str) -> None:
    strange = next((value for value in values if not 0 <= value <= 1), None)
    if strange is not None:
        raise UsageError(
            f"its {metric} is {strange:g}, and an accuracy is a share from 0 to 1",
            where=f"task {task}",
            remedy="Use a task that measures shares; its own scale may be percent",
        )


def _losses(samples: Sequence[Mapping[str, Any]]) -> tuple[float, ...] | None:
    losses = []
    for sample in samples:
        responses, target = sample["filtered_resps"], sample["target"]
        gold = target if isinstance(target, int) else 0
        single = isinstance(target, int) or len(responses) == 1
        if not single or not 0 <= gold < len(responses) or not isinstance(responses[gold], tuple):
            return None
        losses.append(-responses[gold][0])
    return tuple(losses) or None


@contextmanager
def _silence() -> Iterator[None]:
    # The harness logs what we decide ourselves, and has no switch for its progress bars.
    import datasets
    from tqdm import tqdm

    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    original = tqdm.__init__
    tqdm.__init__ = partialmethod(original, disable=True)
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        tqdm.__init__ = original
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
