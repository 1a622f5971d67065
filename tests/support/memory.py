"""How much memory a process takes for itself."""

from __future__ import annotations

import threading
from pathlib import Path


class PeakOfPrivateMemory(threading.Thread):
    """The most memory that a process has had of its own while a block ran.

    Pages of mapped files are not counted: the system takes them back soon or late, later where other work runs.

    Args:
        pid: of the process; None is this one.

    Attributes:
        growth_bytes: the peak less what there was at the beginning.
    """

    def __init__(self, pid: int | None = None) -> None:
        super().__init__(daemon=True)
        self.growth_bytes = 0
        self._status = Path("/proc") / str(pid or "self") / "status"
        self._before = self._private_bytes()
        self._ended = threading.Event()

    def __enter__(self) -> PeakOfPrivateMemory:
        self._before = self._private_bytes()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.01):
            self.growth_bytes = max(self.growth_bytes, self._private_bytes() - self._before)

    def _private_bytes(self) -> int:
        try:
            status = self._status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        # Nor does a process that has ended and is not waited for yet hold anything.
        _, found, after = status.partition("RssAnon:")
        return int(after.split()[0]) * 1024 if found else 0
