"""Accuracy of a classifier on the rows of a task: in torch, a super-network included, or as an exported file."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence, Set
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shearling.artefact import MANIFEST
from shearling.errors import NonFiniteWeights, UsageError
from shearling.evaluation.confidence import wilson_interval
from shearling.evaluation.evaluator import Evaluation, Measure, OnRows
from shearling.evaluation.lm_eval_task import answer_task
from shearling.evaluation.precision import Precision, resolve_precision
from shearling.evaluation.task import Split, TaskRow, read_rows
from shearling.kernel.runtime_refusal import refusals
from shearling.model.context_length import stated_length
from shearling.strict_json import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shearling.evaluation.llama_cpp_process import LlamaCppProcess


class ClassifierScorer(Protocol):
    """Scores the classes of a text."""

    def logits(self, texts: Sequence[str]) -> Tensor:
        """[texts, classes] float32."""
        ...


class TorchClassifier:
    """A Hugging Face classifier, or a super-network with one sub-network active.

    Args:
        model: in eval mode.
        tokenizer: of the model.
        max_length: tokens; longer texts are cut, as in training.
        bf16: run in bfloat16 autocast.
        on_rows: called with the number of rows after each batch.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        max_length: int,
        bf16: bool,
        on_rows: OnRows | None = None,
    ) -> None:
        self._model = model
        self._on_rows = on_rows
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._bf16 = bf16

    def logits(self, texts: Sequence[str]) -> Tensor:
        """See `ClassifierScorer.logits`."""
        import torch

        device = next(self._model.parameters()).device
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        ).to(device)
        autocast = torch.autocast(device.type, dtype=torch.bfloat16) if self._bf16 else nullcontext()
        with torch.inference_mode(), autocast:
            output: Tensor = self._model(**batch).logits
        if self._on_rows is not None:
            self._on_rows(len(texts))
        return output.float().cpu()


class RuntimeClassifier:
    """An exported classifier, in the precision that its runtime prefers.

    Args:
        run: inputs by name, [texts, tokens] int64 -> logits [texts, classes].
        inputs: names that it takes.
        tokenizer: of the model.
        max_length: tokens; longer texts are cut, as in training.
        on_rows: called with the number of rows after each batch.
    """

    def __init__(
        self,
        run: Callable[[dict[str, Any]], Any],
        inputs: Set[str],
        tokenizer: Any,
        *,
        max_length: int,
        on_rows: OnRows | None = None,
    ) -> None:
        self._run, self._inputs = run, inputs
        self._on_rows = on_rows
        self._tokenizer = tokenizer
        self._max_length = max_length

    def logits(self, texts: Sequence[str]) -> Tensor:
        """See `ClassifierScorer.logits`."""
        import numpy as np
        import torch

        batch = dict(
            self._tokenizer(
                list(texts), padding=True, truncation=True, max_length=self._max_length, return_tensors="np"
            )
        )
        # A model may tell the parts of a pair apart where its tokenizer does not: in torch it fills the input in
        # itself.
        batch.setdefault("token_type_ids", np.zeros_like(batch["input_ids"]))
        feed = {name: np.asarray(value, np.int64) for name, value in batch.items() if name in self._inputs}
        with refusals():
            logits = self._run(feed)
        if self._on_rows is not None:
            self._on_rows(len(texts))
        return torch.from_numpy(logits.astype("float32"))


class ClassifierEvaluator:
    """The rows of one split of a task.

    Args:
        directory: a `task` artefact.
        name: of the task.
        split: which rows.
        limit: the first rows only.
        batch_size: rows scored at once, sorted by length.

    Attributes:
        max_length: tokens of a training row; longer texts are to be cut likewise.

    Raises:
        UsageError: its rows have no choices, or not all as many.
    """

    def __init__(
        self, directory: Path, name: str, *, split: Split, limit: int | None = None, batch_size: int = 64
    ) -> None:
        self.task = answer_task(name, split)
        self._rows = read_rows(directory, split)[:limit]
        self._gold, self._choices = _answers(self._rows, name)
        self._batch_size = batch_size
        recipe = read_json(directory / MANIFEST)["details"]["recipe"]
        self.max_length = int(recipe["max_length"])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @property
    def row_digests(self) -> tuple[str, ...]:
        """See `TaskEvaluator.row_digests`."""
        return tuple(row.id for row in self._rows)

    @property
    def sha256(self) -> str:
        """See `TaskEvaluator.sha256`."""
        asked = [self.max_length, *((row.id, row.choices, row.gold) for row in self._rows)]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def on_torch(
        self, model: nn.Module, tokenizer: Any, *, precision: Precision, on_rows: OnRows | None = None
    ) -> Measure:
        """See `TaskEvaluator.on_torch`.

        Raises:
            UsageError: texts are longer than what the model reads.
        """
        config: Any = model.config
        self._check_length(stated_length(config.to_dict()))
        bf16 = resolve_precision(precision, device=next(model.parameters()).device.type) == "bf16"
        scorer = TorchClassifier(model, tokenizer, max_length=self.max_length, bf16=bf16, on_rows=on_rows)
        return functools.partial(self.measure, scorer)

    def on_openvino(self, compiled: Any, tokenizer: Any, *, max_length: int, on_rows: OnRows | None = None) -> Measure:
        """See `TaskEvaluator.on_openvino`; texts are cut as in training, to `self.max_length`.

        Raises:
            UsageError: that is more than the model reads.
        """
        self._check_length(max_length)
        inputs = {name for port in compiled.inputs for name in port.names}
        return self._on_runtime(lambda batch: compiled(batch)["logits"], inputs, tokenizer, on_rows)

    def on_onnx(self, session: Any, tokenizer: Any, *, max_length: int, on_rows: OnRows | None = None) -> Measure:
        """See `TaskEvaluator.on_onnx`; texts are cut as in training, to `self.max_length`.

        Raises:
            UsageError: that is more than the model reads.
        """
        self._check_length(max_length)
        inputs = {item.name for item in session.get_inputs()}
        return self._on_runtime(lambda batch: session.run(["logits"], batch)[0], inputs, tokenizer, on_rows)

    def _check_length(self, most: int | None) -> None:
        if most is not None and self.max_length > most:
            raise UsageError(
                f"it has texts of up to {self.max_length} tokens, and the model reads {most}",
                where=f"task {self.task}",
                remedy="Give the task of the model's own run, or one with a shorter max_length",
            )

    def _check_classes(self, classes: int) -> None:
        if classes != self._choices:
            raise UsageError(
                f"the model has {classes} classes, the rows have {self._choices} choices",
                where=f"task {self.task}",
                remedy="Give the task of the model's own run, or one with the same choices",
            )

    def _on_runtime(
        self, run: Callable[[dict[str, Any]], Any], inputs: Set[str], tokenizer: Any, on_rows: OnRows | None
    ) -> Measure:
        scorer = RuntimeClassifier(run, inputs, tokenizer, max_length=self.max_length, on_rows=on_rows)
        return functools.partial(self.measure, scorer)

    def on_llama_cpp(self, process: LlamaCppProcess, tokenizer: Any, *, on_rows: OnRows | None = None) -> Measure:
        """See `TaskEvaluator.on_llama_cpp`: a GGUF file names no class."""
        raise UsageError("llama.cpp is asked language models alone here", where=f"task {self.task}")

    def measure(self, scorer: ClassifierScorer, places: Sequence[int] | None = None) -> Evaluation:
        """Evaluate one model.

        Args:
            scorer: the model.
            places: of the rows, at least one; None takes all.

        Raises:
            NonFiniteWeights: the model computes NaN or infinity.
            UsageError: it has more or fewer classes than the rows have choices.
        """
        import torch

        started_s = time.perf_counter()
        places = range(len(self._rows)) if places is None else places
        rows, right_classes = [self._rows[place] for place in places], [self._gold[place] for place in places]
        count = len(rows)
        order = sorted(range(count), key=lambda index: (len(rows[index].prompt), rows[index].id))
        answers, losses = [0.0] * count, [0.0] * count
        for start in range(0, count, self._batch_size):
            batch = order[start : start + self._batch_size]
            gold = torch.tensor([right_classes[index] for index in batch])
            log_shares = scorer.logits([rows[index].prompt for index in batch]).log_softmax(-1)
            self._check_classes(log_shares.shape[-1])
            if not log_shares.isfinite().all():
                raise NonFiniteWeights("the model gives classes that are NaN or infinite", where=type(scorer).__name__)
            for index, right, loss in zip(
                batch, log_shares.argmax(-1) == gold, -log_shares.gather(1, gold[:, None])[:, 0], strict=True
            ):
                answers[index], losses[index] = float(right), float(loss)
        accuracy = math.fsum(answers) / count
        return Evaluation(
            task=self.task,
            n=count,
            accuracy=accuracy,
            accuracy_stderr=math.sqrt(accuracy * (1 - accuracy) / max(1, count - 1)),
            interval=wilson_interval(accuracy, count),
            loss=math.fsum(losses) / count,
            bits_per_byte=None,
            seconds=time.perf_counter() - started_s,
            rows_sha256=hashlib.sha256("".join(row.id for row in rows).encode()).hexdigest(),
            answers=tuple(answers),
            losses=tuple(losses),
        )


def _answers(rows: Sequence[TaskRow], name: str) -> tuple[list[int], int]:
    """The right class of each row, and how many there are."""
    gold = [row.gold for row in rows if row.gold is not None]
    counts = {len(row.choices or ()) for row in rows}
    if len(gold) < len(rows) or len(counts) > 1 or 0 in counts:
        raise UsageError(
            "a classifier answers by its classes, and rows here have no choices, or not all as many",
            where=f"task {name}",
            remedy="Give a task of multiple choice, or a language model",
        )
    return gold, max(counts, default=0)
