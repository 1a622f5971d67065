"""One format written, and asked to prove itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from export.formats.export_format import ExportSubject, PlannedFormat, UsageFacts
from export.formats.layer_windows import check_by_layers
from export.packing.packing_report import PackingReport
from export.verification.parity_check import MergedReference, ParityCheck
from export.verification.task_check import TaskCheck, TaskReference
from export.verification.tokenizer_check import TokenizerCheck, check_tokenizer
from export.verification.zeros import ZeroCheck, check_zeros
from shearling.console import log
from shearling.elastic.mask import Masks


@dataclass(frozen=True)
class Proof:
    """What the files of one format were found to compute and to hold.

    Attributes:
        zeros: None where it stores no weight, or none need be zero.
        task: None where it was not asked: there are no rows, or its weights are no integers.
        tokenizer: None where it is the model's own.
    """

    parity: tuple[ParityCheck, ...]
    zeros: ZeroCheck | None
    task: TaskCheck | None
    tokenizer: TokenizerCheck | None

    @property
    def measured(self) -> bool:
        """Whether anything that the files compute was looked at; zeros are counted without running them."""
        return bool(self.parity) or any(check is not None for check in (self.task, self.tokenizer))


@dataclass(frozen=True)
class WrittenFormat:
    """A format whose files are there.

    Attributes:
        path: its directory.
        packing: what was packed for the sparse kernel; None for the stock one.
        seconds: that writing took.
    """

    planned: PlannedFormat
    path: Path
    packing: PackingReport | None
    seconds: float

    @property
    def name(self) -> str:
        """Of its directory, by which the report speaks of it."""
        return self.planned.directory

    @property
    def size_bytes(self) -> int:
        """Of all of its files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    @property
    def runs_packed(self) -> bool:
        """Whether the file needs the operators of this project."""
        return self.packing is not None and self.packing.packed

    def prove(
        self, reference: MergedReference, masks: Masks | None, task: TaskReference | None, subject: ExportSubject
    ) -> Proof:
        """Run it and read it back.

        Args:
            reference: the merged model, which its logits are held against at every precision that a user may get.
            masks: whose zeros it must hold; None where none are promised.
            task: the merged model's answers, which it is held against where its weights are integers, and it is run
                whole.
            subject: what was written.

        Raises:
            SparsityLost: it stores weights, but not those of every pruned module.
        """
        writer, storage = self.planned.writer, self.planned.storage
        reading = reference.reading(storage.weight_format)
        answers = None
        if self.planned.parts > 1:
            log.print(f"{self.name}: too large to be run here as a whole, measured some layers at a time")
            parity = check_by_layers(self.planned, subject, reference, self.path.parent)
        else:
            measured = writer.measure(self.path, reading.blocks, storage)
            parity = tuple(reference.check(item, reading) for item in measured)
        sound = bool(parity) and all(check.parity.finite for check in parity)
        if task is not None and storage.weight_format.integers and sound and self.planned.parts == 1:
            answers = writer.answer(self.path, task.evaluator)
        zeros = None
        if masks is not None:
            zeros = writer.read_zeros(self.path, {path: tuple(mask.shape) for path, mask in masks.items()})
        return Proof(
            parity,
            None if zeros is None or masks is None else check_zeros(self.name, zeros, masks),
            None if answers is None or task is None else task.check(self.name, answers),
            self._check_tokenizer(reference, subject),
        )

    def _check_tokenizer(self, reference: MergedReference, subject: ExportSubject) -> TokenizerCheck | None:
        converted = self.planned.writer.converted_tokenizer(self.path)
        if converted is None:
            return None
        blocks = () if reference.held_back is None else reference.held_back.blocks
        # A block may begin and end within a character.
        rows = [str(subject.tokenizer.decode(block, skip_special_tokens=True)).strip("\ufffd") for block in blocks]
        return check_tokenizer(self.name, converted, subject.tokenizer, rows=rows)

    def usage(self, *, narrowed: bool, separate: bool, adapter: bool) -> str | None:
        """Python that loads it, for the card."""
        facts = UsageFacts(packed=self.runs_packed, narrowed=narrowed, separate=separate, adapter=adapter)
        return self.planned.writer.usage(facts)


def write_format(planned: PlannedFormat, subject: ExportSubject, root: Path) -> WrittenFormat:
    """Write one format into its directory below `root`."""
    log.print(f"writing {planned.directory} ...")
    started_s = time.monotonic()
    path = root / planned.directory
    path.mkdir()
    packing = planned.writer.write(subject, path, planned.storage)
    return WrittenFormat(planned, path, packing, round(time.monotonic() - started_s, 1))
