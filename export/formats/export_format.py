"""What writes one export format. To add one: a subclass of `FormatWriter` in a file of its own, and a record in
`shearling.registry.export_formats`, or in an entry point of the group `shearling.export_formats`.

A writer has no state. The stage makes one before any work, asks it to `check`, and later, when the model is merged, to
`write` it, to `measure` the logits of what it wrote, to `answer` a task, to `read_zeros` of the stored weights and, for
the card, for the lines of code that `usage` shows. `write` alone must be there: what a writer does not measure is not
called verified.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.packing.packing_report import PackingReport
from export.verification.reading import MeasuredLogits
from shearling.registry.export_formats import ExportFormat
from shearling.registry.number_formats import NUMBER_FORMATS, NumberFormat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from export.verification.tokenizer_check import ConvertedTokenizer
    from export.verification.zeros import Zeros
    from shearling.elastic.mask import Masks
    from shearling.elastic.search_space import Choice
    from shearling.elastic.super_network import SuperNetwork
    from shearling.evaluation.evaluator import Evaluation
    from shearling.evaluation.task_evaluator import TaskEvaluator
    from shearling.kernel.packed_format import Matrix

Blocks = Sequence[npt.NDArray[np.int64]]
"""The fixed inputs of the parity checks, [tokens] each."""


@dataclass(frozen=True)
class Storage:
    """How a format is to store the weights.

    Attributes:
        weight_format: fp32 where the format takes no other.
        sparse_kernel: whether the zeros are packed away, for operators of our own.
    """

    weight_format: NumberFormat
    sparse_kernel: bool = False


FLOAT32 = Storage(NUMBER_FORMATS.get("fp32"))
REMAINDER = NUMBER_FORMATS.get("int8")
"""What weights have beside integers that were chosen beforehand, such as embeddings and the head."""


@dataclass(frozen=True)
class ChosenAdapter:
    """The sub-adapter that was merged.

    Attributes:
        network: holds the super-adapter; its model is merged by now, its elastic layers are as they were.
        choice: group id -> value.
        base_model: name of the frozen model.
        masks: at full width, where training was masked; else None.
    """

    network: SuperNetwork
    choice: Choice
    base_model: str
    masks: Masks | None


@dataclass(frozen=True)
class ExportSubject:
    """What is written.

    Attributes:
        model: merged, or the frozen model where there is no adapter; eval mode. Its weights are views of files, in the
            type of the frozen model's: `shearling.model.arithmetic` computes with them in float32.
        frozen: directory of the frozen model.
        masks: of the pruned modules, cut to the model's widths, where its zeros are to be kept; else None.
        separate: whether the ranks stay apart, in modules of ours.
        sparsity: how the model was pruned, for the metadata of a file: method, pattern, modules, pruned, share.
        adapter: None where none was merged.
        weights: directory of the safetensors files that the model's weights are views of; None where ranks stay apart.
        integers: module path -> its weight, where they were trained or chosen on calibration text; formats that store
            integers write these, and round no other way.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    frozen: Path
    masks: Masks | None
    separate: bool
    sparsity: Mapping[str, str]
    adapter: ChosenAdapter | None
    weights: Path | None = None
    integers: Mapping[str, Matrix] = field(default_factory=dict)


@dataclass(frozen=True)
class UsageFacts:
    """What a card knows when it asks how a directory is used.

    Attributes:
        packed: whether it needs the operators of this project.
        narrowed: whether layers have widths of their own, which stock transformers has no class for.
        separate: whether the ranks stayed apart.
        adapter: whether they are among what was exported.
    """

    packed: bool
    narrowed: bool
    separate: bool
    adapter: bool


class FormatWriter(abc.ABC):
    """Writes models with one kind of head in one format."""

    def check(self, model_type: str, storage: Storage) -> None:  # noqa: B027 (most formats have nothing to check)
        """Refuse before any work what could only fail after it.

        Args:
            model_type: of the model's configuration.
            storage: as `write` will be given it.

        Raises:
            EnvironmentFault: a package, a compiler or a header is missing.
        """

    def check_config(self, config: Mapping[str, Any], *, where: Path) -> None:  # noqa: B027 (most take any)
        """Refuse before any work a model that the format has no place for.

        Args:
            config: of the model, as in config.json.
            where: the file.

        Raises:
            ModelUnsupported: says what of it.
        """

    @abc.abstractmethod
    def write(self, subject: ExportSubject, directory: Path, storage: Storage) -> PackingReport | None:
        """Write the model.

        Args:
            subject: not modified.
            directory: an empty one.
            storage: how.

        Returns:
            What was packed, for the sparse kernel; else None.
        """

    def measure(self, directory: Path, blocks: Blocks, storage: Storage) -> Iterator[MeasuredLogits]:
        """Run what was written, at each precision that a user may get."""
        yield from ()

    def answer(self, directory: Path, evaluator: TaskEvaluator) -> Evaluation | None:
        """Let what was written answer the rows of a task, in its runtime as users get it; None where it cannot.

        Args:
            directory: what was written.
            evaluator: of the rows.
        """
        return None

    def converted_tokenizer(self, directory: Path) -> ConvertedTokenizer | None:
        """The tokenizer of what was written, as its runtime has it; None where it is the model's own, unconverted.

        Args:
            directory: what was written.
        """
        return None

    def read_zeros(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> Zeros | None:
        """The zeros of the stored weights; None where no weight of the model is stored.

        Args:
            directory: what was written.
            shapes: module path -> [out, in] of the pruned modules.
        """
        return None

    def usage(self, facts: UsageFacts) -> str | None:
        """Python that loads it, run from the export's directory; None where there is nothing to say."""
        return None


@dataclass(frozen=True)
class PlannedFormat:
    """One format that will be written.

    Attributes:
        directory: its name inside the export.
        parts: how many parts of its layers its runtime is given, one after the other, to be measured: 1 where it can
            hold the whole file.
    """

    entry: ExportFormat
    writer: FormatWriter
    storage: Storage
    directory: str
    parts: int = 1
