"""From a user's data to the files of the `task` artefact: rows rendered, duplicates dropped, splits disjoint.

Rows wait in a file, not in memory, until their order is known: a few numbers are kept of each.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from shearling.errors import RecipeInvalid
from shearling.evaluation.task import CALIBRATION_CHARACTERS, SPLITS, Split, TaskRow, read_rows, row_line, rows_file
from shearling.recipe.task import SplitShares, TaskSection
from train.task.records import read_records
from train.task.rendering import RowRenderer
from train.task.row_account import RowAccount

if TYPE_CHECKING:
    from train.task.chat import ChatRenderer

KEY_DIGITS = 16
"""Of a row's hex digest that rows are sorted by: 64 bits, so that rows with the same key but another digest are rare;
they are told apart by the whole."""

WAITING = ".waiting"


@dataclass(frozen=True)
class BuiltRows:
    """What became of the rows of a task.

    Attributes:
        counts: rows by split, within the section's limits.
        account: rows of the data that were left out, counted from 1.
        read: how many rows the data has.
    """

    counts: dict[Split, int]
    account: RowAccount
    read: int


def build_rows(
    task: TaskSection, directory: Path, *, chat: ChatRenderer | None = None, where: str = "task"
) -> BuiltRows:
    """Render and split the data of a task, and write a file for each split.

    A row's split follows from the sha256 of its prompt alone, so it is stable when data is added, and the same prompt
    is never in two splits. Within a split rows are ordered by that digest: an order without pattern, the same
    everywhere. A row that renders to nothing is left out, and of rows with the same prompt the first is taken.

    Args:
        task: the [task] section, or one of [[data]].
        directory: where the files go; for a while it takes the rendered rows twice.
        chat: the model's chat template; needed where rows are conversations.
        where: the section, for messages.

    Raises:
        RecipeInvalid: a template does not render on a row, or a split came out empty.
        ArtefactMissing, DocumentInvalid: the data is absent or malformed.
    """
    account = RowAccount()
    waiting = directory / WAITING
    try:
        with waiting.open("w+b") as stream:
            rows, read = _render_all(task, RowRenderer(task, chat, where=where), stream, account)
            counts, different = _share_out(task, rows, directory, account)
    finally:
        waiting.unlink(missing_ok=True)
    if not read:
        raise RecipeInvalid(
            "the data has no rows", where=f"[{where}]", remedy=f"See that what [{where}] names is not empty"
        )
    for split, count in counts.items():
        if not count:
            left_out = account.sentence(read)
            raise RecipeInvalid(
                f"no {split} rows among {different} different ones{f': {left_out}' if left_out else ''}",
                where=f"[{where}]",
                remedy=f"Give more data or another [{where}.split]",
            )
    return BuiltRows(counts, account, read)


def check_answers(task: TaskSection, directory: Path, *, where: str) -> None:
    """See that what is learnt holds answers: else the best of all models would have none right.

    Args:
        task: the [task] section, or one of [[data]].
        directory: see `build_rows`.
        where: the section, for messages.

    Raises:
        RecipeInvalid: the pattern finds an answer in none of them.
    """
    if task.answer_pattern is None:
        return
    rows = read_rows(directory, "train", most_characters=CALIBRATION_CHARACTERS)
    if not any(re.search(task.answer_pattern, row.completion) for row in rows):
        raise RecipeInvalid(
            f"it finds no answer in any completion that is learnt, such as {rows[0].completion!r}",
            where=f"[{where}] answer_pattern",
            remedy="Correct it, or leave it out",
        )


def check_apart(tasks: Mapping[str, Path]) -> None:
    """See that no row is learnt that the search or a last test asks: tasks whose splits have other shares cut the same
    prompts at other places.

    Args:
        tasks: the artefacts, by their sections.

    Raises:
        RecipeInvalid: says how many are, and of which.
    """
    for asking, task in tasks.items():
        others = {where: other for where, other in tasks.items() if where != asking}
        asked = {row for split in SPLITS if others and split != "train" for row in _ids(rows_file(task, split))}
        for where, other in others.items():
            both = sum(row in asked for row in _ids(rows_file(other, "train")))
            if both:
                raise RecipeInvalid(
                    f"{both} of its train rows have the prompts of validation or test rows of [{asking}], which would "
                    "be learnt before they are asked",
                    where=f"[{where}]",
                    remedy=f"Give it the same split as [{asking}]",
                )


def _ids(path: Path) -> Iterator[str]:
    with path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)["id"]


def assign_split(digest: str, shares: SplitShares) -> Split:
    """The split of a row.

    Args:
        digest: hex sha256 of its content.
        shares: of the three splits.
    """
    position = int(digest[:KEY_DIGITS], 16) / 2**64
    if position < shares.train:
        return "train"
    return "validation" if position < shares.train + shares.validation else "test"


class _WaitingRows:
    """Rendered rows in a file, a line each, found by their place."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._starts = array("Q", [0])
        self.keys = array("Q")
        self.numbers = array("Q")

    def add(self, row: TaskRow, number: int) -> None:
        """Append a row that has this number in the data."""
        line = row_line(row).encode("utf-8")
        self._stream.write(line)
        self._starts.append(self._starts[-1] + len(line))
        self.keys.append(int(row.id[:KEY_DIGITS], 16))
        self.numbers.append(number)

    def settle(self) -> None:
        """Let what was added be read."""
        self._stream.flush()

    def line(self, place: int) -> bytes:
        """The row as it will stand in its file; after `settle` alone."""
        start = self._starts[place]
        return os.pread(self._stream.fileno(), self._starts[place + 1] - start, start)

    def in_order(self) -> Iterator[tuple[str, list[int]]]:
        """Digests in ascending order, each with the places of its rows, the first in the data first."""
        import numpy as np

        keys = np.frombuffer(self.keys, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        start = 0
        for end in np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(order)):
            places = order[start:end].tolist()
            start = end
            if len(places) == 1:
                yield f"{self.keys[places[0]]:016x}", places
            elif places:
                yield from self._told_apart(places)

    def _told_apart(self, places: list[int]) -> Iterator[tuple[str, list[int]]]:
        digests: dict[str, list[int]] = {}
        for place in places:
            digests.setdefault(json.loads(self.line(place))["id"], []).append(place)
        yield from sorted(digests.items())


def _render_all(task: TaskSection, render: RowRenderer, stream: Any, account: RowAccount) -> tuple[_WaitingRows, int]:
    waiting, number = _WaitingRows(stream), 0
    for number, record in enumerate(read_records(task), start=1):
        row, whole = render(record, number)
        if row is None:
            account.note("empty", number)
            continue
        if not whole:
            account.note("last_turn", number)
        waiting.add(row, number)
    waiting.settle()
    return waiting, number


def _share_out(
    task: TaskSection, rows: _WaitingRows, directory: Path, account: RowAccount
) -> tuple[dict[Split, int], int]:
    """Write the splits; returns their sizes, and the number of different rows."""
    counts: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    different = 0
    files = {split: rows_file(directory, split).open("wb") for split in SPLITS}
    try:
        for digest, places in rows.in_order():
            different += 1
            first, *others = places
            for place in others:
                same = _completion(rows.line(place)) == _completion(rows.line(first))
                account.note("repeated" if same else "contradicting", rows.numbers[place])
            split = assign_split(digest, task.split)
            limit = getattr(task.rows, split)
            if limit is None or counts[split] < limit:
                files[split].write(rows.line(first))
                counts[split] += 1
    finally:
        for file in files.values():
            file.close()
    return counts, different


def _completion(line: bytes) -> Any:
    return json.loads(line)["completion"]
