"""Files that are code: only this user and the administrator may have written them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from shearling.cache import CACHE_VARIABLE
from shearling.errors import EnvironmentFault


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, for this user alone."""
    if not path.is_dir():
        make_private_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def require_private(path: Path) -> None:
    """Check that nobody else can change or replace a file or directory.

    It and everything above it belong to this user or to root. None can be written by others, unless its sticky bit
    keeps them from replacing what is in it, or by a group that is not this user's own.

    Args:
        path: exists; links are followed.

    Raises:
        EnvironmentFault: somebody else can.
    """
    real = path.resolve(strict=True)
    for place in (real, *real.parents):
        fault = _fault(place.stat())
        if fault:
            raise EnvironmentFault(
                f"compiled code is not loaded from where others can write: {fault}",
                where=place,
                remedy=f"Name a directory of your own in {CACHE_VARIABLE}, or: chmod go-w '{place}'",
            )


def _fault(facts: os.stat_result) -> str | None:
    if facts.st_uid not in {0, os.geteuid()}:
        return f"it belongs to user {facts.st_uid}"
    others = facts.st_mode & stat.S_IWOTH or (facts.st_mode & stat.S_IWGRP and facts.st_gid not in {0, os.getegid()})
    return f"its mode is {stat.filemode(facts.st_mode)}" if others and not facts.st_mode & stat.S_ISVTX else None
