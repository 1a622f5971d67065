"""The `task` artefact: the data of a run, split once, with every prompt already rendered.

`train.jsonl`, `validation.jsonl` and `test.jsonl` hold the rows; training and evaluation read the same strings. The
search opens `validation.jsonl` alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

from shearling.errors import ArtefactMissing, DocumentInvalid
from shearling.strict_json import Document, describe_validation_error, read_document

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TASK_FILE = "task.json"


class TaskRow(Document):
    """One example.

    Attributes:
        id: sha256 of the prompt; rows with the same prompt are the same example.
        prompt: what the model reads.
        choices: the possible answers, multiple choice only.
        gold: index of the right one.
        completion: what training learns after the prompt.
        text: the raw text, for bits per byte.
    """

    id: str
    prompt: str
    choices: tuple[str, ...] | None
    gold: int | None
    completion: str
    text: str


class TaskFacts(Document):
    """The content of `task.json`: what a reader needs to know beside the rows.

    Attributes:
        name: of the task; its lm-eval tasks are named after it.
        multiple_choice: whether rows carry choices.
        rows: how many each split has.
        left_out: how many rows of the data are in no split, by reason.
    """

    name: str
    multiple_choice: bool
    rows: dict[Split, int]
    left_out: dict[str, int] = pydantic.Field(default_factory=dict)


@dataclass(frozen=True)
class TaskLocation:
    """Which task is meant, and where it is.

    Attributes:
        name: of a task of the directory without its split, or of a task of lm-evaluation-harness.
        directory: a `task` artefact; None for a task that the harness knows.
    """

    name: str
    directory: Path | None = None


def locate_task(text: str) -> TaskLocation:
    """What a user means by `RUN/task`, or by the name of a harness task.

    Raises:
        ArtefactMissing: a directory without `task.json`.
        DocumentInvalid: its `task.json` is malformed.
    """
    directory = Path(text)
    if (directory / TASK_FILE).is_file():
        return TaskLocation(read_document(directory / TASK_FILE, TaskFacts).name, directory)
    if directory.exists():
        raise ArtefactMissing(
            f"not a task artefact: {TASK_FILE} is missing",
            where=text,
            remedy="Give RUN/task, or the name of a harness task",
        )
    return TaskLocation(text)


def rows_file(directory: Path, split: Split) -> Path:
    """The file of one split."""
    return directory / f"{split}.jsonl"


def write_rows(directory: Path, split: Split, rows: list[TaskRow]) -> None:
    """Write one split, a row a line."""
    lines = [json.dumps(row.model_dump(mode="json"), ensure_ascii=False) for row in rows]
    rows_file(directory, split).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_rows(directory: Path, split: Split) -> list[TaskRow]:
    """Read one split.

    Raises:
        ArtefactMissing: no such file.
        DocumentInvalid: names the line.
    """
    path = rows_file(directory, split)
    if not path.is_file():
        raise ArtefactMissing(f"no {split} rows here", where=path, remedy="Make the task with: python -m train")
    rows = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                rows.append(TaskRow.model_validate_json(line))
            except pydantic.ValidationError as error:
                raise DocumentInvalid(describe_validation_error(error), where=f"{path}, line {number}") from None
    return rows
