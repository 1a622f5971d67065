"""Files of a benchmark that goes on where it stopped: whole ones alone, and what they were made with beside them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shearling.artefact import list_files, sha256_file
from shearling.errors import ArtefactMissing, UsageError
from shearling.strict_json import read_json, write_json

KEPT = "settings.json"


def keep_settings(directory: Path, settings: Mapping[str, object], *, decisive: Collection[str] = ()) -> None:
    """Make a directory for what is made with these settings, or hold them against those that it is kept for.

    Settings that it does not know yet are added to the known ones.

    Args:
        directory: of the files.
        settings: name -> what can be JSON.
        decisive: those of them without which what is there cannot be gone on with.

    Raises:
        UsageError: it holds what was made with another value of one of them, or files and no settings, or none that is
            decisive.
    """
    given = json.loads(json.dumps(settings))
    path = directory / KEPT
    known = read_json(path) if path.exists() else {}
    if not known and directory.is_dir() and any(directory.iterdir()):
        raise UsageError("nothing says what these files were made with", where=directory, remedy=_REMEDY)
    for name in decisive:
        if known and name not in known:
            raise UsageError(f"nothing says with what {name} this was made", where=directory, remedy=_REMEDY)
    for name, value in given.items():
        if known.get(name, value) != value:
            raise UsageError(
                f"what is here was made with {name} = {known[name]}, not {value}", where=directory, remedy=_REMEDY
            )
    directory.mkdir(parents=True, exist_ok=True)
    if not given.items() <= known.items():
        write_json(path, {**known, **given})


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A directory beside this one, which takes its place when the context ends without an error."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def digest_of_model(directory: Path) -> str:
    """Hex digest over the names and the contents of all files of a directory.

    Raises:
        ArtefactMissing: there are none.
    """
    if not directory.is_dir() or not list_files(directory):
        raise ArtefactMissing("no model here", where=directory, remedy="Give the directory of one")
    lines = (f"{name} {sha256_file(directory / name)}\n" for name in list_files(directory))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_of_sources(directories: Iterable[Path], *, without: Collection[str] = ()) -> str:
    """Hex digest over the names and the contents of all Python files in these directories, and below them.

    Args:
        directories: in this order.
        without: names of files that do not count.
    """
    files = (
        (directory, file)
        for directory in directories
        for file in sorted(directory.rglob("*.py"))
        if file.name not in without
    )
    lines = (f"{file.relative_to(directory.parent)} {sha256_file(file)}\n" for directory, file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


_REMEDY = "Choose another directory, or delete this one"
