"""From a user's data to the rows of the `task` artefact: templates rendered, duplicates dropped, splits disjoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shearling.errors import ArtefactMissing, DocumentInvalid, RecipeInvalid
from shearling.evaluation.task import SPLITS, Split, TaskRow
from shearling.recipe.task import HubDataset, SplitShares, TaskSection
from train.package_asset import fetch
from train.task.row_account import RowAccount


@dataclass(frozen=True)
class BuiltRows:
    """The rows of a task, and what became of the others.

    Attributes:
        splits: rows by split, cut to the section's limits.
        account: rows of the data that were left out, counted from 1.
        read: how many rows the data has.
    """

    splits: dict[Split, list[TaskRow]]
    account: RowAccount
    read: int


def build_rows(task: TaskSection) -> BuiltRows:
    """Render and split the data of a recipe.

    A row's split follows from the sha256 of its prompt alone, so it is stable when data is added, and the same prompt
    is never in two splits. Within a split rows are ordered by that digest: an order without pattern, the same
    everywhere. A row that renders to nothing is left out, and of rows with the same prompt the first is taken.

    Args:
        task: the [task] section.

    Raises:
        RecipeInvalid: a template does not render on a row, or a split came out empty.
        ArtefactMissing, DocumentInvalid: the data is absent or malformed.
    """
    render, account, number = _Renderer(task), RowAccount(), 0
    unique: dict[str, TaskRow] = {}
    for number, record in enumerate(_records(task), start=1):
        row = render(record, number)
        if row is None:
            account.note("empty", number)
        elif unique.setdefault(row.id, row) is not row:
            same = unique[row.id].completion == row.completion
            account.note("repeated" if same else "contradicting", number)
    splits: dict[Split, list[TaskRow]] = {split: [] for split in SPLITS}
    for digest in sorted(unique):
        splits[assign_split(digest, task.split)].append(unique[digest])
    limited = {split: rows[: getattr(task.rows, split)] for split, rows in splits.items()}
    for split, rows in limited.items():
        if not rows:
            left_out = account.sentence(number)
            raise RecipeInvalid(
                f"no {split} rows among {len(unique)} different ones{f': {left_out}' if left_out else ''}",
                where="[task]",
                remedy="Give more data or another [task.split]",
            )
    return BuiltRows(limited, account, number)


def assign_split(digest: str, shares: SplitShares) -> Split:
    """The split of a row.

    Args:
        digest: hex sha256 of its content.
        shares: of the three splits.
    """
    position = int(digest[:16], 16) / 2**64
    if position < shares.train:
        return "train"
    return "validation" if position < shares.train + shares.validation else "test"


class _Renderer:
    """Compiled templates of one task."""

    def __init__(self, task: TaskSection) -> None:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import SandboxedEnvironment

        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        self.task = task
        self.template_error = TemplateError
        sources = {
            "text": task.text,
            "prompt": task.prompt,
            "gold": task.gold,
            "completion": task.completion,
            "answer": task.answer,
        }
        self.templates = {}
        for name, source in sources.items():
            if source is not None:
                try:
                    self.templates[name] = environment.from_string(source)
                except TemplateError as error:
                    raise RecipeInvalid(f"not a Jinja template: {error}", where=f"task.{name}") from None

    def __call__(self, record: Mapping[str, Any], number: int) -> TaskRow | None:
        """The row, or None where one of its parts renders to nothing."""
        fields = dict(record)
        rendered: dict[str, str] = {}
        for name in self.templates:
            rendered[name] = self._render(name, fields, number)
            if not rendered[name].strip():
                return None
            # Later templates may use the text.
            fields["text"] = rendered["text"]
        choices, gold, completion = self.task.choices, None, rendered.get("completion", "")
        if choices is not None:
            gold = self._gold(rendered["gold"], number, len(choices))
            completion = choices[gold]
        return TaskRow(
            id=hashlib.sha256(rendered["prompt"].encode()).hexdigest(),
            prompt=rendered["prompt"],
            choices=choices,
            gold=gold,
            completion=completion,
            text=rendered["text"],
            answer=rendered["answer"].strip() if "answer" in rendered else None,
        )

    def _render(self, name: str, fields: Mapping[str, Any], number: int) -> str:
        try:
            return self.templates[name].render(fields)
        except (self.template_error, TypeError) as error:
            raise RecipeInvalid(
                f"row {number}: {error}", where=f"task.{name}", remedy=f"The row has: {', '.join(fields)}"
            ) from None

    def _gold(self, rendered: str, number: int, count: int) -> int:
        text = rendered.strip()
        if not text.isdecimal() or int(text) >= count:
            raise RecipeInvalid(
                f"row {number} renders to {text!r}, expected an index 0..{count - 1} into choices", where="task.gold"
            )
        return int(text)


def _records(task: TaskSection) -> Iterator[Mapping[str, Any]]:
    if task.dataset is not None:
        yield from _hub_records(task.dataset)
    else:
        path = task.path if task.path is not None else fetch(task.asset)  # type: ignore[arg-type] # the section has one source
        yield from _jsonl_records(path)


def _jsonl_records(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise ArtefactMissing("no such data file", where=path, remedy="Give a JSONL file, a row a line")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DocumentInvalid(f"not UTF-8 at byte {error.start}", where=f"{path}, line {number}") from None
            except json.JSONDecodeError as error:
                raise DocumentInvalid(f"malformed JSON: {error.msg}", where=f"{path}, line {number}") from None
            if not isinstance(record, dict):
                raise DocumentInvalid(
                    f"expected an object, found {type(record).__name__}", where=f"{path}, line {number}"
                )
            yield record


def _hub_records(source: HubDataset) -> Iterator[Mapping[str, Any]]:
    import datasets

    directory = Path(source.name)
    try:
        if (directory / "state.json").is_file() or (directory / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(directory))
            rows = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            rows = datasets.load_dataset(source.name, source.config, split=source.split)
    except (FileNotFoundError, ValueError, KeyError, ConnectionError) as error:
        raise ArtefactMissing(
            f"cannot load this data set: {error}",
            where=source.name,
            remedy="Download it first (HF_DATASETS_OFFLINE=0), or save it with save_to_disk",
        ) from None
    yield from rows
