"""How worker processes begin: on Linux as forks of one that has imported the libraries and done nothing else.

So they have its memory in common, and begin at once. They are no forks of the process that asks for them: one that has
computed with torch holds threads and locks that a fork does not copy.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

SHARED_MODULES = "shearling.executors.shared_modules"
"""Imported once, in that process; where that fails, every worker imports what it needs, and says what went wrong."""


def worker_context() -> Any:
    """What starts workers: see `multiprocessing.get_context`.

    They import by themselves where forks are not safe, on other systems than Linux, and where the process that they
    would be forked from cannot be asked: its socket lies in the directory for temporary files, whose path may be too
    long for one.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([SHARED_MODULES])
    try:
        with _same_imports():
            forkserver.ensure_running()
    except OSError:
        return multiprocessing.get_context("spawn")
    return context


@contextmanager
def _same_imports() -> Iterator[None]:
    """Let a Python that is started find modules where this one does, and not in the working directory.

    Python itself hands its path to workers alone, which begin with modules that were found without it.
    """
    changes = {"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
