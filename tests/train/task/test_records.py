"""Rows as people have them: the same rows from every form of file, and what is none of them named with its line."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from shearling.artefact import write_artefact
from shearling.errors import ArtefactMissing, DocumentInvalid, UsageError
from shearling.evaluation.task import read_rows
from shearling.recipe.task import TaskSection
from tests.support.memory import PeakOfPrivateMemory
from train.task.records import _parquet_records, data_files, digest_data, read_records
from train.task.rows import build_rows

ROWS = [
    {"body": 'It\'s 2024-05-06, "quoted", naïve', "urgent": 1},
    {"body": "two\nlines, a comma", "urgent": 0},
    {"body": "007", "urgent": 1},
]


def section(path, **changes) -> TaskSection:
    return TaskSection(**{"name": "tickets", "path": path, "text": "{{ body }} {{ urgent }}", **changes})


def rendered(path) -> list[str]:
    return [f"{record['body']} {record['urgent']}" for record in read_records(section(path))]


def write_jsonl(path: Path, rows=ROWS) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path) -> Path:
    import csv

    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, ["body", "urgent"], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_array(path: Path) -> Path:
    path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    return path


def write_parquet(path: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    return path


def write_saved(path: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


def write_directory(path: Path) -> Path:
    (path / "deep").mkdir(parents=True)
    write_jsonl(path / "a.jsonl", ROWS[:1])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[1:]), path / "deep" / "b.parquet")
    (path / "README.md").write_text("about")
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_jsonl),
        ("rows.json", write_jsonl),
        ("rows.txt", write_jsonl),
        ("rows.json", write_array),
        ("rows.csv", write_csv),
        ("rows.TSV", write_csv),
        ("rows.parquet", write_parquet),
        ("saved", write_saved),
        ("folder", write_directory),
    ],
)
def test_every_form_has_the_same_rows(name, write, tmp_path):
    if name == "rows.TSV":
        write(tmp_path / "rows.tsv").rename(tmp_path / name)
        found = tmp_path / name
    else:
        found = write(tmp_path / name)
    assert rendered(found) == [f"{row['body']} {row['urgent']}" for row in ROWS]
    assert digest_data(found)


def test_the_digest_of_a_directory_is_that_of_all_it_holds(tmp_path):
    folder = write_directory(tmp_path / "folder")
    before = digest_data(folder)
    assert before == digest_data(folder)
    write_jsonl(folder / "deep" / "c.jsonl", ROWS[:1])
    assert digest_data(folder) != before
    assert digest_data(tmp_path / "none") is None


def test_what_a_run_leaves_beside_its_artefacts_is_no_data(tmp_path):
    folder = write_directory(tmp_path / "folder")
    digest = digest_data(folder)
    for name in ("base", "task"):
        with write_artefact(folder / "run" / name, kind=name) as draft:
            (draft.directory / "a.json").write_text("{}")
    unfinished = folder / "run" / "super_adapter-unfinished-1"
    unfinished.mkdir()
    (unfinished / "trainer_state.json").write_text("{}")
    (folder / "run" / "tuned.json").write_text("{}")
    assert digest_data(folder) == digest
    # Rows count, wherever something was made of them.
    write_jsonl(folder / "run" / "more.jsonl", ROWS[:1])
    assert digest_data(folder) != digest


def test_all_files_count_where_another_library_reads_them(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    found = []
    for text in ("a", "b"):
        (folder / "rows.txt").write_text(text)
        found.append((digest_data(folder), digest_data(folder, whole=True)))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_what_editors_and_archives_hide_is_no_data(tmp_path):
    folder = write_directory(tmp_path / "folder")
    rows, digest = rendered(folder), digest_data(folder)
    for place in (".ipynb_checkpoints/a-checkpoint.jsonl", "._a.csv", "__MACOSX/a.csv", "deep/.cache/a.jsonl"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / place, [{"body": "out of date", "urgent": 0}])
    assert rendered(folder) == rows
    assert digest_data(folder) == digest


@pytest.mark.parametrize("name", ["b.jsonl.gz", "deep/b.CSV.zst"])
def test_compressed_rows_are_refused_rather_than_missed(name, tmp_path):
    folder = write_directory(tmp_path / "folder")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    (folder / "notes.tar.gz").write_bytes(b"")
    for path in (folder, folder / name):
        with pytest.raises(DocumentInvalid, match="compressed rows are not read") as caught:
            rendered(path)
        assert (caught.value.where, caught.value.remedy) == (str(folder / name), "Unpack the file")


def test_what_is_no_row_decides_nothing(tmp_path):
    folder = write_directory(tmp_path / "folder")
    digest = digest_data(folder)
    (folder / "notes.txt").write_text("ask again on Monday")
    assert digest_data(folder) == digest
    saved = write_saved(tmp_path / "saved")
    digest = digest_data(saved)
    [arrow, *_] = saved.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes() + b" ")
    assert digest_data(saved) != digest


def test_what_a_run_wrote_into_the_directory_is_no_data(tmp_path):
    folder = write_directory(tmp_path / "folder")
    rows, digest = rendered(folder), digest_data(folder)
    with write_artefact(folder / "run" / "task", kind="task") as draft:
        write_jsonl(draft.directory / "train.jsonl")
    assert (rendered(folder), digest_data(folder)) == (rows, digest)
    # A file of theirs may have the name of our manifest.
    (folder / "theirs").mkdir()
    (folder / "theirs" / "manifest.json").write_text('{"body": "theirs", "urgent": 1}')
    assert len(rendered(folder)) == len(rows) + 1


@pytest.mark.parametrize(
    "content",
    [
        'sentence\tlabel\n"Hello world\t1\nmiddle row\t0\nfoo"\t0\nlast\t1\n',
        'label\tsentence\n1\t"Hello world\n0\tmiddle row\n1\tfoo"\n',
    ],
)
def test_quotes_that_swallow_rows_of_a_tsv_are_named(content, tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(content)
    with pytest.raises(DocumentInvalid, match="a cell that begins with a quote holds 3 lines and a tab") as caught:
        list(read_records(section(path)))
    assert caught.value.where.endswith("line 4")
    assert "JSONL" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("name", "content", "message", "where"),
    [
        ("a.csv", b"body,urgent\nhi\n", "1 cells under 2 columns", "line 2"),
        ("a.csv", b"body,body\nhi,there\n", "two columns are named 'body'", "line 1"),
        ("a.csv", b"", "no columns are named", "line 1"),
        ("a.csv", b"body;urgent\nhi;1\n", "parted by commas here, and these by semicolons", "line 1"),
        ("a.csv", b"body\turgent\nhi\t1\n", "parted by commas here, and these by tabs", "line 1"),
        ("a.tsv", b"body,urgent\nhi,1\n", "parted by tabs here, and these by commas", "line 1"),
        ("a.csv", b'body,urgent\n"hi,1\n', "malformed CSV", "after line 1"),
        ("a.csv", b"body,urgent\ncaf\xe9,1\n", "not UTF-8", "line 2"),
        ("a.csv", b"body,urgent\n" + b"hello,1\n" * 200 + b"caf\xe9,1\n", "not UTF-8", "line 202"),
        ("a.parquet", b"body,urgent\n", "malformed Parquet", "a.parquet"),
        ("a.json", b'[{"body": 1},\n 2]', "expected an object, found int", "element 2"),
        ("a.json", b'[{"body": 1},\n', "malformed JSON", "line 2"),
        ("a.jsonl", b'{"body": ' + b"1" * 5000 + b"}\n", "JSON that Python does not read: .*4300", "line 1"),
        ("a.json", b"[" * 200_000, "JSON that Python does not read", "a.json"),
        ("a.bin", b"\x7fELF", "malformed JSON", "line 1"),
        ("a.txt", b"just some text\n", "malformed JSON", "line 1"),
    ],
)
def test_what_is_none_of_them_is_named(name, content, message, where, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DocumentInvalid, match=message) as caught:
        list(read_records(section(path)))
    assert caught.value.where.endswith(where)
    assert caught.value.exit_code == 3


def test_a_damaged_page_of_parquet_is_bad_data(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"body": [f"server {number} burns" for number in range(4000)]})
    pyarrow.parquet.write_table(table, path, compression="snappy", use_dictionary=False)
    content = bytearray(path.read_bytes())
    for place in range(40, len(content) // 2, 97):
        content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DocumentInvalid, match="malformed Parquet") as caught:
        list(read_records(section(path)))
    assert caught.value.where == str(path)
    with pytest.raises(FileNotFoundError):
        list(_parquet_records(tmp_path / "absent.parquet"))


def test_a_directory_without_rows_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("about")
    with pytest.raises(ArtefactMissing, match="no file with rows") as caught:
        data_files(tmp_path)
    assert "Parquet" in caught.value.remedy


def test_a_data_set_with_other_splits_says_which(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"dev": table}).save_to_disk(str(tmp_path / "one"))
    assert len(rendered(tmp_path / "one")) == 3
    datasets.DatasetDict({"dev": table, "held": table}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UsageError, match="no split 'train', but 'dev', 'held'"):
        rendered(tmp_path / "two")
    with pytest.raises(UsageError, match="no split 'train', but 'dev'"):
        list(read_records(section(None, dataset={"name": str(tmp_path / "one")})))


def test_a_field_that_is_null_is_empty(tmp_path):
    rows = [{"body": f"ticket {number}", "urgent": None} for number in range(30)]
    build_rows(section(write_jsonl(tmp_path / "d.jsonl", rows)), tmp_path)
    assert read_rows(tmp_path, "train")[0].text.endswith(" ")


def test_a_text_alone_is_its_own_example(tmp_path):
    built = build_rows(
        section(write_jsonl(tmp_path / "d.jsonl", [{**ROWS[0], "urgent": n} for n in range(40)])), tmp_path
    )
    assert sum(built.counts.values()) == 40
    row = read_rows(tmp_path, "test")[0]
    assert (row.prompt, row.completion) == ("", row.text)


def test_rows_with_the_same_short_key_are_told_apart(tmp_path, monkeypatch):
    from train.task import rows

    path = write_jsonl(tmp_path / "d.jsonl", [{"body": f"ticket {n % 90}", "urgent": n // 90} for n in range(180)])
    options = {"prompt": "{{ body }}", "completion": "{{ urgent }}"}
    for name in ("whole", "short"):
        (tmp_path / name).mkdir()
    expected = build_rows(section(path, **options), tmp_path / "whole")
    # Five bits: nearly all rows share their key with others.
    monkeypatch.setattr(rows._WaitingRows, "add", _add_with_short_key(rows._WaitingRows.add))
    found = build_rows(section(path, **options), tmp_path / "short")
    assert found.account.counts == expected.account.counts == {"contradicting": 90}
    assert found.account.sentence(180) == expected.account.sentence(180)
    ids = [
        {row.id for split in ("train", "validation", "test") for row in read_rows(tmp_path / name, split)}
        for name in ("whole", "short")
    ]
    assert ids[0] == ids[1]


def _add_with_short_key(add):
    def shortened(self, row, number):
        add(self, row, number)
        self.keys[-1] &= 31 << 59

    return shortened


def test_data_is_never_whole_in_memory(tmp_path):
    """40 MB of rows grow the memory by less than 8: 10 GB fit into 1 with what is kept of each row."""
    body = "The quick brown fox jumps over the lazy dog. " * 45
    path = tmp_path / "large.jsonl"
    with path.open("w") as stream:
        stream.writelines(f"{json.dumps({'body': f'{number} {body}', 'urgent': 0})}\n" for number in range(20_000))
    size = path.stat().st_size
    assert size > 40e6
    build_rows(section(write_jsonl(tmp_path / "warm.jsonl", [{**ROWS[0], "urgent": n} for n in range(40)])), tmp_path)
    gc.collect()
    with PeakOfPrivateMemory() as memory:
        built = build_rows(section(path), tmp_path)
    assert sum(built.counts.values()) == 20_000
    assert memory.growth_bytes < size / 5
