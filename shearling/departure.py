"""How a command leaves its process: after all of Python's exit functions, and before those of C++ libraries.

OpenVINO's allocator, among others, is taken apart by such functions while a thread of another library may still use it:
3 of 50 commands that had refused something ended with SIGSEGV in place of their exit code.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from contextlib import suppress


class Departure:
    """Ends the process as the last of the exit functions that are registered after this one.

    Attributes:
        code: to leave with; None lets the process end by itself.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        atexit.register(self._leave)

    def _leave(self) -> None:
        if self.code is None:
            return
        # Registered when `logging` was imported, before this.
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError, OSError):  # none, closed, or read by nobody
                stream.flush()
        os._exit(self.code)


departure = Departure()
"""Registered when it is imported, so before the libraries whose exit functions must run first."""
