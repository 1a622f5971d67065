"""What a person sees while a stage works: stdout carries results, stderr everything else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Log(Console):
    """What is said beside the results. Where it cannot be written, since its reader has gone or the disk is full, the
    work goes on in silence, and its exit code says how it ended.
    """

    def on_broken_pipe(self) -> None:
        """See rich, which would end the process here."""
        self.quiet = True

    def print(self, *values: Any, **options: Any) -> None:
        """See rich."""
        try:
            super().print(*values, **options)
        except OSError:
            self.quiet = True


log = Log(stderr=True, highlight=False, soft_wrap=True, markup=False)
"""It shows brackets as they are: paths, and the last words of others, may hold some."""

PLAIN_INTERVAL_S = 10.0
"""Without a terminal, progress is a line at most this often."""

BESIDE = 46
"""Columns of a terminal that count, times and a note of a progress need, so that nothing of them is cut."""
BAR = 41
"""Columns of a bar, which is there where it has room."""

Advance = Callable[..., None]
"""Call with no argument after each unit; `note=` replaces the text behind the bar."""


@contextmanager
def progress(description: str, *, total: int) -> Iterator[Advance]:
    """Show a bar with an estimate of the time left; plain lines where stderr is not a terminal.

    Args:
        description: what is being done, a few words.
        total: number of units; the yielded function is called once per unit.
    """
    if log.is_terminal:
        room = max(10, log.width - BESIDE)
        shown = description if len(description) <= room else f"{description[: room - 1]}…"
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *((BarColumn(),) if len(shown) + BAR <= room else ()),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=log) as bar:
            task = bar.add_task(escape(shown), total=total, note="")

            def advance(*, note: str | None = None) -> None:
                if note is not None:
                    bar.update(task, note=note)
                bar.advance(task)

            yield advance
        return

    started_s = last_s = time.monotonic()
    done = 0
    log.print(f"{description}: {total} steps")

    def advance_plain(*, note: str | None = None) -> None:
        nonlocal done, last_s
        done += 1
        now_s = time.monotonic()
        if now_s - last_s >= PLAIN_INTERVAL_S or done == total:
            elapsed_s = now_s - started_s
            left_s = elapsed_s / done * (total - done)
            log.print(
                f"{description}: {done}/{total}, {elapsed_s:.0f} s, {left_s:.0f} s left{f', {note}' if note else ''}",
            )
            last_s = now_s

    yield advance_plain
