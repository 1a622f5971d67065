"""Ctrl-C and SIGTERM while a step is running: finish the step, checkpoint, then leave."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from shearling.command_line import Terminated
from shearling.console import log


@dataclass
class Interruption:
    """Whether a signal asked to stop.

    Attributes:
        signal: the number of the first one, or None.
    """

    signal: int | None = None

    def raise_if_received(self) -> None:
        """Leave the way the command line expects.

        Raises:
            KeyboardInterrupt: after SIGINT.
            Terminated: after SIGTERM.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal == signal.SIGTERM:
            raise Terminated


@contextmanager
def deferred_interruption() -> Iterator[Interruption]:
    """Note SIGINT and SIGTERM instead of raising; a second signal acts at once."""
    interruption = Interruption()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, _frame: FrameType | None) -> None:
        interruption.signal = number
        log.print("stopping after this step; a second signal stops at once")
        for restored, handler in previous.items():
            signal.signal(restored, handler)

    for number in previous:
        signal.signal(number, receive)
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
