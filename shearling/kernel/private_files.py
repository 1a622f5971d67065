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


def unloadable(path: Path, reason: object) -> EnvironmentFault:
    """Of a library that is there as it was written, and that the system does not load: a file system without the right
    to execute, or another C library.
    """
    return EnvironmentFault(
        f"the compiled kernels cannot be loaded: {reason}",
        where=path,
        remedy=f"Name another directory in {CACHE_VARIABLE}, or remove the file to have it compiled anew",
    )


def require_private(path: Path) -> None:
    """Check that nobody else can change or replace a file or directory.

    It and everything above it belong to this user or to the administrator. None can be written by others, unless its
    sticky bit keeps them from replacing what is in it, or by a group that is not this user's own.

    Args:
        path: exists; links are followed.

    Raises:
        EnvironmentFault: somebody else can.
    """
    real = path.resolve(strict=True)
    # Inside a user namespace root has another number, that of the owner of everything.
    top = Path(real.root).stat()
    users, groups = {0, top.st_uid, os.geteuid()}, {0, top.st_gid, os.getegid()}
    for place in (real, *real.parents):
        facts = place.stat()
        open_to_others = facts.st_mode & stat.S_IWOTH or (facts.st_mode & stat.S_IWGRP and facts.st_gid not in groups)
        if facts.st_uid not in users:
            fault = f"it belongs to user {facts.st_uid}"
        elif open_to_others and not facts.st_mode & stat.S_ISVTX:
            fault = f"its mode is {stat.filemode(facts.st_mode)}"
        else:
            continue
        raise EnvironmentFault(
            f"compiled code is not loaded from where others can write: {fault}",
            where=place,
            remedy=f"Name a directory of your own in {CACHE_VARIABLE}, or: chmod go-w '{place}'",
        )
