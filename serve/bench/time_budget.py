"""How much time is left, and what it is better spent on: new processes, or more blocks of those that run."""

from __future__ import annotations

import time

CHECK_S = 50.0
"""What a check of latency may take: with loading and the verdict a minute."""

RESTART_BLOCKS = 3
"""A session of fewer blocks is not worth its loading."""

FIRST_SHARE = 0.5
"""The first session leaves so much of the time to others."""


class TimeBudget:
    """The time of one measurement.

    Args:
        seconds: from now on; None is endless.
    """

    def __init__(self, seconds: float | None) -> None:
        self.started_s = time.monotonic()
        self._seconds = seconds
        self._setup_s = 0.0
        self._session_s = 0.0
        self._blocks = 0

    def elapsed_s(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.started_s

    def begin_session(self) -> None:
        """New processes are about to be started."""
        self._session_s, self._blocks = time.monotonic(), 0

    def end_setup(self) -> None:
        """They are loaded and warm."""
        self._setup_s = time.monotonic() - self._session_s

    def count_block(self) -> None:
        """A whole block was measured."""
        self._blocks += 1

    def spent(self) -> bool:
        """Nothing is left."""
        return self._seconds is not None and self.elapsed_s() >= self._seconds

    def restarts(self, size: int, *, first: bool) -> bool:
        """Whether it is time for new processes.

        Args:
            size: blocks of a session.
            first: this session is the first one: it ends early rather than be the only one.
        """
        if self._seconds is None:
            return self._blocks >= size
        own_s = time.monotonic() - self._session_s
        block_s = (own_s - self._setup_s) / max(1, self._blocks)
        fits = self.elapsed_s() + self._setup_s + RESTART_BLOCKS * block_s <= self._seconds
        late = first and self.elapsed_s() >= FIRST_SHARE * self._seconds
        return fits and (self._blocks >= size or late)
