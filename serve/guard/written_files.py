"""Files that a check writes when it has measured: refused before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from shearling.errors import UsageError


def require_writable(path: Path, *, whole: bool = False) -> None:
    """Refuse now what would lose a verdict later.

    Args:
        path: a file, which may be there.
        whole: it is replaced by a new one.

    Raises:
        UsageError: no file can be written there.
    """
    parent = path.absolute().parent
    written = path if path.exists() and not whole else parent
    if path.is_dir() or not parent.is_dir() or not os.access(written, os.W_OK):
        raise UsageError(
            "no file can be written here", where=path, remedy="Name a file in a directory that is, and may be written"
        )
