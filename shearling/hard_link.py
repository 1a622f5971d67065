"""One file under two names, where the file system can do that."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def link_or_copy(source: Path | str, destination: Path | str) -> None:
    """Give a file that nobody writes in place a second name.

    Where there are no hard links (another file system; exFAT, shared folders, mounted buckets) it is copied.

    Args:
        source: the file; as a string, too, for `shutil.copytree`.
        destination: must not exist.
    """
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
