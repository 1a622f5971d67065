"""Instructions of this process, where the kernel lets a process count its own (perf_event_open(2)).

They do not depend on neighbours, clock rates or where memory lies. Most virtual machines have no such counter.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import struct

SYSTEM_CALLS = {"x86_64": 298, "aarch64": 241}
HARDWARE, INSTRUCTIONS = 0, 1
SOFTWARE, TASK_CLOCK = 1, 1
FLAGS = 1 << 1 | 1 << 5 | 1 << 6
"""inherit: threads that are started later count, too. exclude_kernel and exclude_hv: an unprivileged process may."""
ATTRIBUTES_BYTES = 120
FLAGS_AT = 40


def instructions() -> int | None:
    """In this process's own code since the first call, which has to come before other threads exist; None where they
    cannot be counted.
    """
    counter = open_counter(HARDWARE, INSTRUCTIONS)
    return None if counter is None else read_counter(counter)


@functools.cache
def open_counter(kind: int, event: int) -> int | None:
    """Begin to count for the calling thread, and those that it will start.

    Args:
        kind: `type` of perf_event_attr.
        event: its `config`.

    Returns:
        A file descriptor, or None: no such counter, or not for us.
    """
    number = SYSTEM_CALLS.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return None
    attributes = bytearray(ATTRIBUTES_BYTES)
    struct.pack_into("=IIQ", attributes, 0, kind, ATTRIBUTES_BYTES, event)
    struct.pack_into("=Q", attributes, FLAGS_AT, FLAGS)
    buffer = (ctypes.c_char * ATTRIBUTES_BYTES).from_buffer(attributes)
    with contextlib.suppress(OSError, AttributeError):
        descriptor = ctypes.CDLL(None).syscall(number, buffer, 0, -1, -1, 0)
        return int(descriptor) if descriptor >= 0 else None
    return None


def read_counter(descriptor: int) -> int:
    """What it has counted so far."""
    return int(struct.unpack("=Q", os.read(descriptor, 8))[0])
