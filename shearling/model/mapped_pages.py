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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_MADV_DONTNEED = 4
_MAPPING = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) [^\n]*\.safetensors\n.*?^Rss: +(\d+) kB\n.*?^Anonymous: +(\d+) kB\n",
    re.MULTILINE | re.DOTALL,
)
"""Of /proc/self/smaps: start and end of a checkpoint's mapping, its resident pages, and those that were written to."""
_FILE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) [^\n]*\.safetensors$", re.MULTILINE)
"""Of /proc/self/maps: the same without the pages, which take far longer to count."""
_INTERVAL_S = 0.005
_STEP_BYTES = 32 * 2**20
"""Of new pages, from which on they are given back."""


def give_back_pages() -> None:
    """Give back all pages of mapped checkpoints, but for mappings in which something was changed."""
    for start, end in _droppable():
        _give_back(start, end)


def give_back_pages_of(tensor: Tensor) -> None:
    """Give back the pages of one tensor.

    Args:
        tensor: a view of a file, nothing of which was changed; any other is left alone.
    """
    start, size_bytes = tensor.data_ptr(), tensor.nbytes
    try:
        table = Path("/proc/self/maps").read_bytes()
    except OSError:
        return
    for found in _FILE.finditer(table):
        if int(found[1], 16) <= start and start + size_bytes <= int(found[2], 16):
            # Its first and last page may be shared with its neighbours.
            first, last = -(-start // mmap.PAGESIZE), (start + size_bytes) // mmap.PAGESIZE
            _give_back(first * mmap.PAGESIZE, last * mmap.PAGESIZE)


def _give_back(start: int, end: int) -> None:
    if end > start:
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
        table = Path("/proc/self/smaps").read_bytes()
    except OSError:
        # Another system than Linux.
        return
    for start, end, resident, written in _MAPPING.findall(table):
        # What a private page holds, after it was written to, is nowhere else.
        if int(resident) and not int(written):
            yield int(start, 16), int(end, 16)
