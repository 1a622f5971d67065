"""Rows on disk: read back as written, and a damaged line is named."""

from __future__ import annotations

import re

import pytest

from shearling.artefact import write_artefact
from shearling.errors import ArtefactMissing, DocumentInvalid, UsageError
from shearling.evaluation.task import SPLITS, TaskRow, has_rows, locate_task, read_rows, rows_file, write_rows

ROWS = [
    TaskRow(id="a", prompt="line one\nline two ", choices=(" no", " yes"), gold=1, completion=" yes", text="été “x”"),
    TaskRow(id="b", prompt="p", choices=None, gold=None, completion="\u2028", text="🎉"),
]


@pytest.mark.parametrize("split", SPLITS)
def test_round_trip(split, tmp_path):
    write_rows(tmp_path, split, ROWS)
    assert read_rows(tmp_path, split) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == [f"{split}.jsonl"]


@pytest.mark.parametrize(
    "line",
    ["", "{}", "[]", "{", '{"id": 1, "prompt": "p", "choices": null, "gold": null, "completion": "c", "text": "t"}'],
)
def test_a_damaged_line_is_named(line, tmp_path):
    write_rows(tmp_path, "test", ROWS)
    file = rows_file(tmp_path, "test")
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(DocumentInvalid) as caught:
        read_rows(tmp_path, "test")
    assert caught.value.where.endswith("test.jsonl, line 3")


def test_a_run_is_no_task_and_says_where_it_is(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "task.json").write_text("{}")
    with pytest.raises(UsageError, match=re.escape(f"Give {tmp_path / 'task'}")):
        locate_task(str(tmp_path))


def test_a_path_where_nothing_is_is_no_name_of_a_task():
    with pytest.raises(ArtefactMissing, match="no such task"):
        locate_task("runs/nowhere/task")
    assert locate_task("arc_easy").directory is None


def test_missing_rows_say_how_to_make_them(tmp_path):
    with pytest.raises(ArtefactMissing, match="python -m train"):
        read_rows(tmp_path, "train")


def test_rows_that_are_lost_are_rows_all_the_same(tmp_path):
    assert not has_rows(tmp_path / "task", "train")
    with write_artefact(tmp_path / "task", kind="task") as draft:
        write_rows(draft.directory, "train", ROWS)
    for _ in range(2):
        assert has_rows(tmp_path / "task", "train")
        assert not has_rows(tmp_path / "task", "validation")
        rows_file(tmp_path / "task", "train").unlink(missing_ok=True)
    write_rows(tmp_path / "task", "validation", ROWS)
    assert has_rows(tmp_path / "task", "validation")
