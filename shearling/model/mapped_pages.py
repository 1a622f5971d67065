"""Pages of mapped checkpoints, given back to the system while the mapping stays.

A tensor that is a view of a file has its pages in memory from the first time that they are read. Nothing is lost when
they go: the next reader gets them from the file again, most often from the system's cache of it.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MADV_DONTNEED = 4
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+\s*(.*)$")
_SUFFIX = ".safetensors"
_INTERVAL_S = 0.01
_STEP_BYTES = 64 * 2**20
"""Of new pages, from which on they are given back."""


def give_back_pages() -> None:
    """Give back all pages of mapped checkpoints, but for mappings in which something was changed."""
    for start, end in _droppable():
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


@contextmanager
def pages_given_back() -> Iterator[None]:
    """Give them back again and again, while libraries read all weights of a model one after the other."""
    done = threading.Event()

    def keep_giving_back() -> None:
        level_bytes = _file_bytes()
        while not done.wait(_INTERVAL_S):
            # Looking through all mappings takes milliseconds, the sum of their pages microseconds.
            if _file_bytes() > level_bytes + _STEP_BYTES:
                give_back_pages()
                level_bytes = _file_bytes()

    thread = threading.Thread(target=keep_giving_back, name="give-back-pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        give_back_pages()


def _file_bytes() -> int:
    """Resident pages of all files, libraries included."""
    try:
        shared = int(Path("/proc/self/statm").read_text().split()[2])
    except OSError:
        return 0
    return shared * mmap.PAGESIZE


def _droppable() -> Iterator[tuple[int, int]]:
    """Start and end of the mappings of checkpoints without a page of our own."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        # Another system than Linux.
        return
    place: tuple[int, int] | None = None
    for line in lines:
        if head := _HEAD.match(line):
            start, end, file = head.groups()
            place = (int(start, 16), int(end, 16)) if file.endswith(_SUFFIX) else None
        elif place is not None and line.startswith("Rss:") and line.split()[1] == "0":
            place = None
        # A private page that was written to: only this process has what it holds.
        elif place is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                yield place
            place = None
