"""The rows of a user's data, as they are: from JSONL, JSON, CSV, Parquet, directories of these, and `datasets`.

One record is in memory at a time, except where a JSON file is one array. What a field holds is left alone: JSONL and
CSV are read here and not by `datasets`, which gives every row the same fields and turns texts that look like dates into
dates.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shearling.artefact import holds_artefact, sha256_file
from shearling.errors import ArtefactMissing, DocumentInvalid, UsageError
from shearling.recipe.task import HubDataset, TaskSection
from train.package_asset import fetch

Record = Mapping[str, Any]

TAB = "\t"
SEPARATORS = {".csv": ",", ".tsv": TAB}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*JSON_SUFFIXES, *SEPARATORS, ".parquet")
COMPRESSED = (".bz2", ".gz", ".xz", ".zst")
"""Behind one of them."""
MAC_ARCHIVE = "__MACOSX"
"""Directory beside what an archive of macOS holds."""
SAVED = ("state.json", "dataset_dict.json")
"""One of them stands in what `save_to_disk` wrote."""

SET_ASIDE = re.compile(r"-unfinished-[0-9]+$")
"""Directory of a training that was set aside, see `train.super_adapter.resumption`."""

UNQUOTED = "Where quotes are characters like others, convert the file to JSONL, or double them and enclose the cell"

FORMS = "Give JSONL (an object a line), CSV, Parquet, a directory of these, or what save_to_disk of `datasets` wrote"


def read_records(task: TaskSection) -> Iterator[Record]:
    """The rows of a task's data, in the order of the files.

    Raises:
        ArtefactMissing: the data is absent.
        DocumentInvalid: it is malformed; names the line.
        UsageError: a data set has several splits, and none is "train".
    """
    if task.dataset is not None:
        return _hub_records(task.dataset)
    path = task.path if task.path is not None else fetch(task.asset)  # type: ignore[arg-type] # the section has one source
    if _is_saved(path):
        return _hub_records(HubDataset(name=str(path)), only_split=True)
    return itertools.chain.from_iterable(map(_file_records, data_files(path)))


def data_files(path: Path) -> list[Path]:
    """A file, or those of a directory that hold rows, sorted by name; neither hidden ones nor what a run wrote.

    Raises:
        ArtefactMissing: there is nothing.
        DocumentInvalid: one of them is compressed.
    """
    check_data_there(path)
    if path.is_file():
        _check_unpacked([path])
        return [path]
    _check_unpacked(_seen_files(path))
    files = _files_with_rows(path)
    if not files:
        raise ArtefactMissing(f"no file with rows in this directory ({', '.join(SUFFIXES)})", where=path, remedy=FORMS)
    return files


def _files_with_rows(directory: Path) -> list[Path]:
    return sorted(file for file in _seen_files(directory) if file.suffix.lower() in SUFFIXES)


def _seen_files(directory: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(directory):
        here = Path(folder)
        # In place: what is taken out is not entered. A run may stand beside the rows that it was made from.
        names[:] = [name for name in names if not _is_hidden(name) and not _is_made(here / name)]
        documents = all(holds_artefact(here / name) for name in ("base", "task"))
        yield from (
            here / name
            for name in files
            if not _is_hidden(name) and not (documents and Path(name).suffix.lower() == ".json")
        )


def _is_made(directory: Path) -> bool:
    """Whether a run made it: artefacts, and unfinished trainings that were set aside."""
    return holds_artefact(directory) or SET_ASIDE.search(directory.name) is not None


def _check_unpacked(files: Iterable[Path]) -> None:
    """Refuse compressed files of rows, which nothing here reads: beside others they would be missed by nobody."""
    for file in files:
        if file.suffix.lower() in COMPRESSED and Path(file.stem).suffix.lower() in SUFFIXES:
            raise DocumentInvalid("compressed rows are not read", where=file, remedy="Unpack the file")


def _is_hidden(name: str) -> bool:
    """Copies that editors keep, and what archives and file systems add."""
    return name.startswith(".") or name == MAC_ARCHIVE


def check_data_there(path: Path) -> None:
    """See that there is a file or a directory.

    Raises:
        ArtefactMissing: there is none.
    """
    if not path.is_file() and not path.is_dir():
        raise ArtefactMissing("no such data file or directory", where=path, remedy=FORMS)


def digest_data(path: Path, *, whole: bool = False) -> str | None:
    """What identifies the rows of a file or a directory: hex sha256; None where nothing is there.

    Args:
        path: of the data.
        whole: of a directory all files count, whatever they are called: the `datasets` library reads many kinds.
    """
    import hashlib

    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return None
    whole = whole or _is_saved(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if whole else _files_with_rows(path)
    digests = {file.relative_to(path).as_posix(): sha256_file(file) for file in files}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in SAVED)


def _file_records(path: Path) -> Iterator[Record]:
    suffix = path.suffix.lower()
    if suffix in SEPARATORS:
        return _csv_records(path, SEPARATORS[suffix])
    if suffix == ".parquet":
        return _parquet_records(path)
    with path.open("rb") as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"[") and suffix == ".json":
        return _array_records(path)
    return _jsonl_records(path)


def _jsonl_records(path: Path) -> Iterator[Record]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield _object(text, f"{path}, line {number}")


def _object(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DocumentInvalid(f"not UTF-8 at byte {error.start}", where=where, remedy=FORMS) from None
    except json.JSONDecodeError as error:
        raise DocumentInvalid(f"malformed JSON: {error.msg}", where=where, remedy=FORMS) from None
    except (ValueError, RecursionError) as error:
        raise DocumentInvalid(f"JSON that Python does not read: {error}", where=where, remedy=FORMS) from None
    return _checked(record, where)


def _array_records(path: Path) -> Iterator[Record]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DocumentInvalid(f"not UTF-8 at byte {error.start}", where=path, remedy=FORMS) from None
    except json.JSONDecodeError as error:
        raise DocumentInvalid(
            f"malformed JSON: {error.msg}", where=f"{path}, line {error.lineno}", remedy=FORMS
        ) from None
    except (ValueError, RecursionError) as error:
        raise DocumentInvalid(f"JSON that Python does not read: {error}", where=path, remedy=FORMS) from None
    for number, row in enumerate(rows, start=1):
        yield _checked(row, f"{path}, element {number}")


def _checked(record: Any, where: str) -> Record:
    if not isinstance(record, dict):
        raise DocumentInvalid(f"expected an object, found {type(record).__name__}", where=where, remedy=FORMS)
    return record


def _csv_records(path: Path, separator: str) -> Iterator[Record]:
    """Every cell as the text that it is; the first line names the columns."""
    csv.field_size_limit(sys.maxsize)
    number = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, delimiter=separator, strict=True)
            names = next(lines, [])
            _check_header(names, path)
            _check_separator(names, separator, path)
            for cells in lines:
                _check_quotes(cells, separator, where=f"{path}, line {lines.line_num}")
                number = lines.line_num
                if len(cells) == len(names):
                    yield dict(zip(names, cells, strict=True))
                elif cells:
                    raise DocumentInvalid(
                        f"{len(cells)} cells under {len(names)} columns",
                        where=f"{path}, line {number}",
                        remedy="Quote cells that hold the separator or line breaks",
                    )
    except UnicodeDecodeError as error:
        where = f"{path}, line {_unreadable_line(path)}"
        raise DocumentInvalid(f"not UTF-8: {error.reason}", where=where, remedy=FORMS) from None
    except csv.Error as error:
        remedy = UNQUOTED if separator == TAB else "Double the quotes of a cell, and enclose it in quotes"
        where = f"{path}, after line {number}"
        raise DocumentInvalid(f"malformed CSV: {error}", where=where, remedy=remedy) from None


def _unreadable_line(path: Path) -> int:
    """The first line that is not UTF-8; text is decoded some thousand bytes ahead of the line that is read."""
    with path.open("rb") as stream:
        lines = enumerate(stream, start=1)
        return next((number for number, line in lines if line.decode("utf-8", "ignore").encode() != line), 1)


def _check_separator(names: list[str], separator: str, path: Path) -> None:
    """One column whose name holds what other files part columns with is several."""
    other = next((mark for mark in (";", TAB, ",", "|") if mark != separator and mark in names[0]), None)
    if len(names) == 1 and other is not None:
        word = {";": "semicolons", TAB: "tabs", ",": "commas", "|": "bars"}
        ours = word[separator]
        raise DocumentInvalid(
            f"columns are parted by {ours} here, and these by {word[other]}: {names[0]!r:.60}",
            where=f"{path}, line 1",
            remedy=f"Write it with {ours}" + (", or call it .tsv" if other == TAB else ""),
        )


def _check_quotes(cells: list[str], separator: str, *, where: str) -> None:
    """Many files with tabs have no quotes but as characters: one at the start of a cell would swallow rows."""
    for cell in cells if separator == TAB else ():
        if TAB in cell and "\n" in cell:
            lines = cell.count("\n") + 1
            raise DocumentInvalid(
                f"a cell that begins with a quote holds {lines} lines and a tab", where=where, remedy=UNQUOTED
            )


def _check_header(names: list[str], path: Path) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if not names or twice:
        raise DocumentInvalid(
            f"two columns are named {twice[0]!r}" if twice else "no columns are named",
            where=f"{path}, line 1",
            remedy="The first line of a CSV file names its columns",
        )


def _parquet_records(path: Path) -> Iterator[Record]:
    import pyarrow.lib
    import pyarrow.parquet

    # Who cannot open the file is told so by its path.
    with path.open("rb") as stream:
        try:
            with pyarrow.parquet.ParquetFile(stream) as file:
                for batch in file.iter_batches(batch_size=256):
                    yield from batch.to_pylist()
        except (pyarrow.lib.ArrowException, OSError) as error:
            # A page that cannot be decompressed is an OSError without a number; with one, it is the disk.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DocumentInvalid(f"malformed Parquet: {error}", where=path, remedy=FORMS) from None


def _hub_records(source: HubDataset, *, only_split: bool = False) -> Iterator[Record]:
    import datasets

    try:
        if _is_saved(Path(source.name)):
            loaded = datasets.load_from_disk(str(source.name))
            split = isinstance(loaded, datasets.DatasetDict)
            rows: Iterable[Record] = _one_split(loaded, source, only_split=only_split) if split else loaded
        else:
            rows = datasets.load_dataset(str(source.name), source.config, split=source.split)
    except datasets.exceptions.DatasetGenerationError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise DocumentInvalid(f"cannot read this data set: {reason}", where=str(source.name), remedy=FORMS) from None
    except RuntimeError as error:
        # It is of a script, which would have to be run.
        raise DocumentInvalid(
            f"cannot read this data set: {error}", where=str(source.name), remedy=f"Save it with save_to_disk. {FORMS}"
        ) from None
    except (FileNotFoundError, ValueError, KeyError, ConnectionError) as error:
        raise ArtefactMissing(
            f"cannot load this data set: {error}",
            where=str(source.name),
            remedy="Download it first (HF_DATASETS_OFFLINE=0), or save it with save_to_disk",
        ) from None
    yield from rows


def _one_split(splits: Mapping[str, Iterable[Record]], source: HubDataset, *, only_split: bool) -> Iterable[Record]:
    if source.split in splits:
        return splits[source.split]
    if only_split and len(splits) == 1:
        return next(iter(splits.values()))
    raise UsageError(
        f"this data set has no split {source.split!r}, but {', '.join(map(repr, splits))}",
        where=str(source.name),
        remedy="Name one in [task.dataset]",
    )
