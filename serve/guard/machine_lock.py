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
    named = os.environ.get(VARIABLE)
    try:
        return Path(named or Path(tempfile.gettempdir(), NAME))
    except FileNotFoundError:
        raise EnvironmentFault(
            "no directory for temporary files can be written",
            remedy=f"Give one with TMPDIR=DIRECTORY, or {VARIABLE}=FILE alone",
        ) from None


@contextlib.contextmanager
def measuring_alone() -> Iterator[None]:
    """Wait until no other check measures, of whatever user; the system releases the lock of a process that dies.

    Raises:
        EnvironmentFault: there can be no such file.
    """
    with locked(
        lock_path(),
        waiting="another check measures on this machine: waiting until it has ended",
        remedy=f"Name another file that all can read: {VARIABLE}=FILE",
    ):
        yield


@contextlib.contextmanager
def locked(path: Path, *, waiting: str, remedy: str) -> Iterator[None]:
    """Wait until nobody else holds a lock, and hold it; the system releases that of a process that dies.

    Args:
        path: of a file, which is made where there is none, and stays; its directory is there.
        waiting: told where somebody else holds it.
        remedy: what to do where it cannot be locked.

    Raises:
        EnvironmentFault: it cannot.
    """
    descriptor = _open(path, remedy=remedy)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.print(waiting)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise _unlockable(path, error, remedy) from None
        yield
    finally:
        os.close(descriptor)


def _open(path: Path, *, remedy: str) -> int:
    # What belongs to somebody else in a shared directory may not be created anew.
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with contextlib.suppress(FileExistsError):
            if not path.exists():
                made = os.open(path, flags | os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.fchmod(made, 0o644)  # whatever the umask is: other users have to read it
                os.close(made)
        try:
            # NFS locks only what may be written; elsewhere reading is enough.
            descriptor = os.open(path, flags | os.O_RDWR)
        except (PermissionError, IsADirectoryError):
            descriptor = os.open(path, flags | os.O_RDONLY)
    except OSError as error:
        raise _unlockable(path, error, remedy) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise EnvironmentFault("no regular file", where=path, remedy=remedy)
    return descriptor


def _unlockable(path: Path, error: OSError, remedy: str) -> EnvironmentFault:
    return EnvironmentFault(f"cannot be locked, so nobody can take turns: {error.strerror}", where=path, remedy=remedy)
