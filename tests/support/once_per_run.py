"""What takes long to make and is only read: the first process of a run of the tests makes it, the others wait."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED_PLACE = "SHEARLING_TESTS_ONCE"
"""The variable with a directory of several runs, such as both of `make test-all`; who sets it removes that."""


def once_per_run(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A directory that all tests of this run share, whichever process they run in; none may change it.

    Runs that are told of one place (`SHARED_PLACE`) share it, too.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: of the directory, one for each thing.
        make: fills an empty directory; called once.
    """
    directory = _shared_place(factory) / "once" / name
    directory.parent.mkdir(exist_ok=True)
    made = directory.with_name(f"{name}.made")
    with directory.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            # Of a process that failed, or was killed.
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            make(directory)
            for file in directory.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    file.chmod(file.stat().st_mode & ~0o222)
            made.touch()
    return directory


def _shared_place(factory: pytest.TempPathFactory) -> Path:
    if SHARED_PLACE in os.environ:
        return Path(os.environ[SHARED_PLACE])
    base = factory.getbasetemp()
    # Each worker of xdist has a directory of its own in that of the run.
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def writable_copy(source: Path, target: Path) -> Path:
    """A copy of such a directory, or of a part of it, that a test may change; returns `target`."""
    return Path(shutil.copytree(source, target, copy_function=shutil.copyfile))
