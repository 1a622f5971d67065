"""The one door to the two ways of answering a task: a language model by lm-evaluation-harness, a classifier by its
classes.

Which of them it is follows from what the model is for, and is asked here alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from shearling.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from shearling.evaluation.evaluator import Measure, OnRows
    from shearling.evaluation.llama_cpp_process import LlamaCppProcess
    from shearling.evaluation.precision import Precision
    from shearling.evaluation.task import Split, TaskLocation
    from shearling.model.head import Head


class TaskEvaluator(Protocol):
    """The rows of one split of a task, loaded once and measured on any number of models."""

    @property
    def task(self) -> str:
        """Name of the task, its split included."""
        ...

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def row_digests(self) -> tuple[str, ...]:
        """Per row the sha256 of what it asks: sorting by it gives an order without pattern."""
        ...

    @property
    def sha256(self) -> str:
        """Digest of how the task asks its rows, and of the rows."""
        ...

    def on_torch(
        self, model: nn.Module, tokenizer: Any, *, precision: Precision, on_rows: OnRows | None = None
    ) -> Measure:
        """What measures a torch model, or a super-network with one sub-network active.

        Args:
            model: in eval mode.
            tokenizer: of the model.
            precision: bf16 is autocast; auto takes it where the hardware has it.
            on_rows: called with the number of rows after each batch.
        """
        ...

    def on_openvino(self, compiled: Any, tokenizer: Any, *, max_length: int, on_rows: OnRows | None = None) -> Measure:
        """What measures an exported OpenVINO model.

        Args:
            compiled: an `openvino.CompiledModel`.
            tokenizer: of the model.
            max_length: most tokens that the model reads, see `context_length`: as many as in torch.
            on_rows: called with the number of rows after each batch.
        """
        ...

    def on_onnx(self, session: Any, tokenizer: Any, *, max_length: int, on_rows: OnRows | None = None) -> Measure:
        """What measures an exported ONNX model.

        Args:
            session: an `onnxruntime.InferenceSession`.
            tokenizer: of the model.
            max_length: most tokens that the model reads, see `context_length`: as many as in torch.
            on_rows: called with the number of rows after each batch.
        """
        ...

    def on_llama_cpp(self, process: LlamaCppProcess, tokenizer: Any, *, on_rows: OnRows | None = None) -> Measure:
        """What measures a GGUF file.

        Args:
            process: llama.cpp with the file.
            tokenizer: of the file.
            on_rows: called with the number of rows after each batch.

        Raises:
            UsageError: the task is for classifiers.
        """
        ...


def open_evaluator(
    task: TaskLocation,
    *,
    head: Head,
    split: Split,
    limit: int | None = None,
    batch_size: int = 64,
    bits_per_byte: bool = False,
) -> TaskEvaluator:
    """Verify a task, and load it for models of one kind.

    Args:
        task: of a run, or of the harness.
        head: what the models are for.
        split: which rows.
        limit: the first rows only.
        batch_size: most rows of a batch; changes the time, and the result by rounding only.
        bits_per_byte: measure the raw text too, where the task has it and the models are language models.

    Raises:
        UsageError: no such task, or it has no such split; or a classifier is asked a task of the harness, or
            one without choices.
        ArtefactMissing: its data is not on this machine.
        ArtefactCorrupt: what is read of the task of a run differs from its manifest.
    """
    from shearling.evaluation.classification import ClassifierEvaluator
    from shearling.evaluation.evaluator import Evaluator
    from shearling.evaluation.lm_eval_task import verify_task
    from shearling.evaluation.task import rows_file

    verify_task(task, split)
    if head == "language_model":
        return Evaluator(
            task.name,
            split=split,
            include_path=task.directory,
            limit=limit,
            bits_per_byte=bits_per_byte,
            batch_size=batch_size,
        )
    if task.directory is None or not rows_file(task.directory, split).is_file():
        raise UsageError(
            "a classifier answers the task of its run alone", where=f"task {task.name}", remedy="Give RUN/task"
        )
    return ClassifierEvaluator(task.directory, task.name, split=split, limit=limit, batch_size=batch_size)
