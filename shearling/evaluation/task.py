"""The `task` artefact: the data of a run, split once, with every prompt already rendered.

`train.jsonl`, `validation.jsonl` and `test.jsonl` hold the rows; training and evaluation read the same strings. The
search opens `validation.jsonl` alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

from shearling.artefact import MANIFEST, Manifest
from shearling.errors import ArtefactMissing, DocumentInvalid, UsageError
from shearling.strict_json import Document, describe_validation_error, read_document

Split = Literal["train", "validation", "test"]
MeasuredSplit = Literal["validation", "test"]
"""What a model may be measured on."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CALIBRATION_CHARACTERS = 2**26
"""Of the rows of a large task that are read where a sample of its text is enough: hundreds of times what is used."""
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
        answer: what is to be found in generated text; None where the task does not generate.
        tail: what follows the completion of a conversation, as its template writes it; None where there is no template.
        learnt: of a conversation the characters of prompt + completion + tail that are the assistant's, as pairs of
            first and end.
    """

    id: str
    prompt: str
    choices: tuple[str, ...] | None
    gold: int | None
    completion: str
    text: str
    answer: str | None = None
    tail: str | None = None
    learnt: tuple[tuple[int, int], ...] | None = None

    def text_read(self, *, classifies: bool) -> str:
        """What a model reads of it: a classifier the prompt alone, a language model the completion as well."""
        return self.prompt if classifies else self.prompt + self.completion


OPTIONAL = ("answer", "tail", "learnt")
"""Fields that are left out of a file where a task has none: a column of nothing would change its digest."""


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
        directory: a `task` artefact, or a directory of the harness's task files; None for a task that the harness
            knows.
    """

    name: str
    directory: Path | None = None


def locate_task(text: str) -> TaskLocation:
    """What a user means by `RUN/task`, by a task file of the harness or a directory with one, or by the name of a task
    that the harness knows.

    Raises:
        ArtefactMissing: a directory with neither, or no such file or directory.
        UsageError: a run, a directory with several tasks, or a file with none.
        DocumentInvalid: its `task.json` is malformed.
    """
    path = Path(text)
    if (path / TASK_FILE).is_file():
        return TaskLocation(read_document(path / TASK_FILE, TaskFacts).name, path)
    if (path / "task" / TASK_FILE).is_file():
        raise UsageError("this is the run, its task lies in it", where=path, remedy=f"Give {path / 'task'}")
    if path.is_file() or path.is_dir():
        return _locate_task_file(path)
    if os.sep in text:  # which no task of the harness is called by
        raise ArtefactMissing(
            "no such task", where=path, remedy="Give RUN/task, a task file, or a name that lm_eval knows"
        )
    return TaskLocation(text)


def _locate_task_file(path: Path) -> TaskLocation:
    # Imported here: it takes seconds, and the tasks of a run do not need it.
    from lm_eval.tasks import TaskManager

    directory = path if path.is_dir() else path.parent
    manager = TaskManager(include_path=str(directory), include_defaults=False)
    names = [
        name
        for name in manager.all_subtasks
        if path.is_dir() or Path(manager.task_index[name].yaml_path or "").resolve() == path.resolve()
    ]
    if len(names) == 1:
        return TaskLocation(names[0], directory)
    if path.is_dir() and not names:
        raise ArtefactMissing(
            f"no task here: neither {TASK_FILE} nor a task file of lm-evaluation-harness",
            where=path,
            remedy="Give RUN/task, a task file, or the name of a harness task",
        )
    raise UsageError(
        f"there are several tasks here: {', '.join(names)}" if names else "this file defines no task",
        where=path,
        remedy="Give the file of one of them" if names else "Give a YAML file with the key 'task'",
    )


def rows_file(directory: Path, split: Split) -> Path:
    """The file of one split."""
    return directory / f"{split}.jsonl"


def has_rows(directory: Path, split: Split) -> bool:
    """Whether a task, which need not exist, has rows of one split: their file is there, or its manifest lists it and it
    is lost, which is for whoever reads them to say.

    Raises:
        DocumentInvalid: the manifest is malformed.
    """
    file, manifest = rows_file(directory, split), directory / MANIFEST
    return file.is_file() or (manifest.is_file() and file.name in read_document(manifest, Manifest).files)


def row_line(row: TaskRow) -> str:
    """A row as a line of its file, with the line break."""
    absent = {name for name in OPTIONAL if getattr(row, name) is None}
    return f"{json.dumps(row.model_dump(mode='json', exclude=absent), ensure_ascii=False)}\n"


def write_rows(directory: Path, split: Split, rows: Iterable[TaskRow]) -> None:
    """Write one split, a row a line."""
    with rows_file(directory, split).open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(map(row_line, rows))


def iterate_rows(directory: Path, split: Split) -> Iterator[TaskRow]:
    """The rows of one split, one of them in memory at a time.

    Raises:
        ArtefactMissing: no such file.
        DocumentInvalid: names the line.
    """
    path = rows_file(directory, split)
    if not path.is_file():
        raise ArtefactMissing(f"no {split} rows here", where=path, remedy="Make the task with: python -m train")
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield TaskRow.model_validate_json(line)
            except pydantic.ValidationError as error:
                raise DocumentInvalid(describe_validation_error(error), where=f"{path}, line {number}") from None


def read_rows(directory: Path, split: Split, *, most_characters: int | None = None) -> list[TaskRow]:
    """Read one split, or its first rows.

    Args:
        directory: a `task` artefact.
        split: which rows.
        most_characters: stop behind so many of prompts and completions; rows stand in an order without pattern.

    Raises:
        ArtefactMissing: no such file.
        DocumentInvalid: names the line.
    """
    rows, characters = [], 0
    for row in iterate_rows(directory, split):
        rows.append(row)
        characters += len(row.prompt) + len(row.completion)
        if most_characters is not None and characters > most_characters:
            break
    return rows
