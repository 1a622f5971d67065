"""How much time is left, and what it is better spent on: new processes, or more blocks of those that run."""

from __future__ import annotations

import time
from collections.abc import Callable

CHECK_S = 50.0
"""What a check of latency may take: with loading and the verdict a minute."""

RESTART_BLOCKS = 3
"""A session of fewer blocks is not worth its loading."""

FIRST_SHARE = 0.5
"""The first session leaves so much of the time to others."""

SHORTEST_BLOCKS = 2
"""Of a session that the end of the time may cut."""


class TimeBudget:
    """The time of one measurement.

    Args:
        seconds: from now on; None is endless.
        clock: seconds that never go back.
    """

    def __init__(self, seconds: float | None, *, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self.started_s = self._clock()
        self._seconds = seconds
        self._setup_s = 0.0
        self._session_s = 0.0
        self._blocks = 0
        self._block_s = 0.0

    def elapsed_s(self) -> float:
        """Since the beginning."""
        return self._clock() - self.started_s

    def begin_session(self) -> None:
        """New processes are about to be started."""
        self._session_s, self._blocks = self._clock(), 0

    def end_setup(self) -> None:
        """They are loaded and warm."""
        self._setup_s = self._clock() - self._session_s

    def count_block(self) -> None:
        """A whole block was measured."""
        self._blocks += 1
        self._block_s = (self._clock() - self._session_s - self._setup_s) / self._blocks

    def setup_blocks(self) -> float:
        """What new processes cost, in blocks, as the last session shows it; 0 before the first one."""
        return self._setup_s / self._block_s if self._block_s else 0.0

    def affords_session(self) -> bool:
        """Whether another session of a few blocks fits into what is left."""
        needed_s = self._setup_s + SHORTEST_BLOCKS * self._block_s
        return self._seconds is None or self.elapsed_s() + needed_s <= self._seconds

    def session_is_over(self, size: int, counting: int, *, session: int, wanted: int) -> bool:
        """Whether this session has what it needs, or others need its time.

        Args:
            size: blocks that it was to have.
            counting: those of its blocks that count.
            session: its number, from 0.
            wanted: sessions that have to fit into the budget.
        """
        if counting >= size or self._blocks >= 2 * size:
            return True
        late = self._seconds is not None and self.elapsed_s() >= self._seconds * (session + 1) / wanted
        return late and self._blocks >= SHORTEST_BLOCKS

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
        own_s = self._clock() - self._session_s
        block_s = (own_s - self._setup_s) / max(1, self._blocks)
        fits = self.elapsed_s() + self._setup_s + RESTART_BLOCKS * block_s <= self._seconds
        late = first and self.elapsed_s() >= FIRST_SHARE * self._seconds
        return fits and (self._blocks >= size or late)
