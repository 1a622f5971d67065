"""The text that a quantization is calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.calibration.windows import draw_windows, read_texts, token_stream
from shearling.errors import UsageError
from shearling.evaluation.task import CALIBRATION_CHARACTERS, has_rows, read_rows

if TYPE_CHECKING:
    from torch import Tensor

TASK_ROWS = "task"
"""In --dataset: the training rows of the run."""
WINDOW_TOKENS, SHORTEST_WINDOW = 128, 8
JSON_FIELD = "text"
"""Of a line of a .jsonl file."""
REMEDY = "--dataset takes 'task', and files: plain text, or .jsonl with the key 'text'"


@dataclass(frozen=True)
class CalibrationText:
    """Where the text is; all files of it were there when this was made.

    Attributes:
        names: as the user gave them; windows of each follow by turns.
        task: the run's `task` artefact, where it is one of them.
    """

    names: tuple[str, ...]
    task: Path | None

    @property
    def reads_task(self) -> bool:
        """Whether rows of the task are among the texts."""
        return self.task is not None and TASK_ROWS in self.names

    def streams(self, tokenizer: Any, *, classifies: bool = False) -> list[Tensor]:
        """Tokens of each text, [tokens] int64.

        Args:
            tokenizer: of the model.
            classifies: the model does, and so reads prompts alone.

        Raises:
            ArtefactMissing, DocumentInvalid: a file has gone, or is no text.
            UsageError: one is too short, by itself or beside another that fills a window.
        """
        streams = [token_stream(self._texts(name, classifies=classifies), tokenizer) for name in self.names]
        most = max(len(stream) for stream in streams)
        for name, stream in zip(self.names, streams, strict=True):
            if len(stream) < SHORTEST_WINDOW:
                raise UsageError(
                    f"{name} has {len(stream)} tokens, too few to calibrate on", where="--dataset", remedy=REMEDY
                )
            if len(stream) < WINDOW_TOKENS <= most:
                raise UsageError(
                    f"{name} has {len(stream)} tokens, a window has {WINDOW_TOKENS}: those of the other texts would be "
                    "as short",
                    where="--dataset",
                    remedy="Give more of it, or leave it out",
                )
        return streams

    def _texts(self, name: str, *, classifies: bool) -> list[str]:
        if name == TASK_ROWS and self.task is not None:
            return [
                row.text_read(classifies=classifies)
                for row in read_rows(self.task, "train", most_characters=CALIBRATION_CHARACTERS)
            ]
        path = Path(name)
        return read_texts(path, JSON_FIELD if path.suffix == ".jsonl" else None, remedy=REMEDY)


def find_text(names: Sequence[str] | None, task: Path) -> CalibrationText | None:
    """What the user named, or the run's rows where it has some; None where nothing was named and there are no rows.

    Args:
        names: of --dataset.
        task: the run's `task` artefact, which need not exist.

    Raises:
        UsageError: a named text is not there.
    """
    if names is None:
        return CalibrationText((TASK_ROWS,), task) if has_rows(task, "train") else None
    for name in names:
        if name == TASK_ROWS and not has_rows(task, "train"):
            raise UsageError("there are no training rows", where=task, remedy=REMEDY)
        if name != TASK_ROWS and not Path(name).is_file():
            raise UsageError(f"no such text: {name}", where="--dataset", remedy=REMEDY)
    if not names:
        raise UsageError("no text is named", where="--dataset", remedy=REMEDY)
    return CalibrationText(tuple(names), task)


def windows_of(streams: Sequence[Tensor], count: int, *, seed: int) -> list[Tensor]:
    """Windows of `WINDOW_TOKENS`, or as long as the shortest text, from all by turns."""
    length = min(WINDOW_TOKENS, *(len(stream) for stream in streams))
    return draw_windows(streams, samples=count, seq_len=length, seed=seed)
