"""Where a command writes: refused before it begins, not when it has something to write."""

from __future__ import annotations

import os
from pathlib import Path

from shearling.errors import UsageError


def require_writable(path: Path, *, whole: bool = False) -> None:
    """Refuse now what would lose a result later.

    Args:
        path: a file, which may be there.
        whole: it is replaced by a new one, which no device or pipe can be.

    Raises:
        UsageError: no file can be written there.
    """
    parent = path.absolute().parent
    written = path if path.exists() and not whole else parent
    replaced = whole and path.exists() and not path.is_file()
    if replaced or path.is_dir() or not parent.is_dir() or not os.access(written, os.W_OK):
        raise UsageError(
            "no file can be written here", where=path, remedy="Name a file in a directory that is, and may be written"
        )


def require_directory(path: Path) -> None:
    """Refuse a destination that is no directory and cannot become one.

    Args:
        path: a directory, which need not be there, and neither need those above it.

    Raises:
        UsageError: it, or what is above it, is a file, or may not be written.
    """
    there = path.absolute()
    while not there.exists() and not there.is_symlink():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(
            "no directory can be made here", where=path, remedy="Choose another place, or one that you may write to"
        )
