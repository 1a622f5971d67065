"""A measuring process died: one other setting is tried, and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from serve.bench.crash import MeasuringProcessDied
from serve.runtimes.runtime import RunOptions
from shearling.console import log

Found = TypeVar("Found")


def with_other_settings(
    measure: Callable[[RunOptions], Found],
    options: RunOptions,
    *,
    allowed: Callable[[RunOptions], bool] = lambda _: True,
) -> tuple[Found, tuple[str, ...]]:
    """Measure, and once more with other settings where a process died and there are some to try.

    Args:
        measure: with the options that it is given.
        options: to begin with.
        allowed: whether other settings may stand for these.

    Returns:
        What was found, and what was changed for it and why.

    Raises:
        RuntimeCrashed: a process died, and other settings did not help, or there were none to try.
    """
    try:
        return measure(options), ()
    except MeasuringProcessDied as crash:
        if crash.other is None or not allowed(crash.other.options):
            raise
        change = f"measured with {crash.other.flag}, because without it {crash.where}: {crash.message}"
        log.print(change)
        return measure(crash.other.options), (change,)
