"""How much memory this process takes for itself."""

from __future__ import annotations

import threading
from pathlib import Path


class PeakOfPrivateMemory(threading.Thread):
    """The most memory that this process has had of its own while a block ran; pages of mapped files are not counted.

    Attributes:
        growth_bytes: the peak less what there was at the beginning.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.growth_bytes = 0
        self._before = _private_bytes()
        self._ended = threading.Event()

    def __enter__(self) -> PeakOfPrivateMemory:
        self._before = _private_bytes()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.01):
            self.growth_bytes = max(self.growth_bytes, _private_bytes() - self._before)


def _private_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024
