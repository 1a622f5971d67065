"""Files that a check writes when it has measured: refused before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from shearling.errors import UsageError


def require_writable(path: Path) -> None:
    """Refuse now what would lose a verdict later.

    Raises:
        UsageError: no file can be written there.
    """
    parent = path.absolute().parent
    if path.is_dir() or not parent.is_dir() or not os.access(path if path.exists() else parent, os.W_OK):
        raise UsageError(
            "no file can be written here", where=path, remedy="Name a file in a directory that is, and may be written"
        )
