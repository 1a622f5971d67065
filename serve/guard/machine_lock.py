"""One check at a time on a machine: two that measure at once measure each other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shearling.console import log
from shearling.errors import EnvironmentFault

VARIABLE = "SHEARLING_LATENCY_LOCK"
NAME = "shearling-latency.lock"


def lock_path() -> Path:
    """The file that all checks of this machine lock; SHEARLING_LATENCY_LOCK names another."""
    return Path(os.environ.get(VARIABLE) or Path(tempfile.gettempdir(), NAME))


@contextlib.contextmanager
def measuring_alone() -> Iterator[None]:
    """Wait until no other check measures, of whatever user; the system releases the lock of a process that dies.

    Raises:
        EnvironmentFault: there can be no such file.
    """
    descriptor = open_lock(lock_path(), remedy=f"Name another file that all can read: {VARIABLE}=FILE")
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.print("another check measures on this machine: waiting until it has ended")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_lock(path: Path, *, remedy: str) -> int:
    """A descriptor of a file for `fcntl.flock`, which is made where there is none, and stays.

    Args:
        path: in a directory that is there.
        remedy: what to do where it cannot be opened.

    Raises:
        EnvironmentFault: there can be no such file.
    """
    # Reading is enough for a lock, and what belongs to somebody else in a shared directory may not be created anew.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                made = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
                os.fchmod(made, 0o644)  # whatever the umask is: other users have to read it
                os.close(made)
            descriptor = os.open(path, flags)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot be opened, so checks cannot take turns: {error.strerror}",
            where=path,
            remedy=remedy,
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise EnvironmentFault("no regular file", where=path, remedy=remedy)
    return descriptor
