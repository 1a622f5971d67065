"""Moving a process's memory into huge pages, so that two processes with the same model are equally fast.

Runtimes repack weights into hundreds of allocations. Where these lie in small pages is decided once, and makes one
process up to 15 % slower than another with the same model for its whole life: no interval within that process shows it,
and a guard without this cries wolf. Collapsed into pages of 2 MiB, they decode faster than before, and two of them
differ by 2 % (one standard deviation).

MADV_COLLAPSE (Linux 6.1, madvise(2)) copies a range into a huge page at once, whatever the system's setting for huge
pages is. Packed weights are in huge pages from the start, where the system gives them; PR_SET_THP_DISABLE (prctl(2))
forbids all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Iterator
from pathlib import Path

MAPS = Path("/proc/self/maps")
MADV_COLLAPSE = 25
REFUSALS = (errno.ENOMEM, errno.EBUSY, errno.EAGAIN)
"""No huge page is free, or the process may have no more of them, or not now."""
HUGE_BYTES = 2**21
PR_SET_THP_DISABLE = 41


def refuse_huge_pages() -> None:
    """Let what this process allocates from now on be in small pages, whatever asks for huge ones, where the system
    offers it (Linux).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


def collapse_memory() -> tuple[int, int]:
    """Move the private memory of this process into huge pages, as far as there are any.

    Returns:
        Bytes that now lie in huge pages, and bytes that could, but for which the system had none; both 0 where it
        cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    moved = refused = unknown = 0
    for start in _ranges():
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(HUGE_BYTES), MADV_COLLAPSE) == 0:
            moved += HUGE_BYTES
        # Any other reason is the range's own: it is not resident, for example.
        elif ctypes.get_errno() in REFUSALS:
            refused += HUGE_BYTES
        elif ctypes.get_errno() == errno.EINVAL:
            unknown += HUGE_BYTES
    # A system of before Linux 6.1 does not know the advice, and refuses all ranges so.
    return (moved, refused) if moved or refused else (0, unknown)


def _ranges() -> Iterator[int]:
    """Starts of the aligned ranges of one huge page within private writable mappings."""
    lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines() if MAPS.is_file() else []
    for line in lines:
        bounds, permissions = line.split()[:2]
        if permissions != "rw-p":
            continue
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        first = -(-start // HUGE_BYTES) * HUGE_BYTES
        yield from range(first, end // HUGE_BYTES * HUGE_BYTES, HUGE_BYTES)
