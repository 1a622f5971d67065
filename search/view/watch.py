"""Keeps the page of a running search up to date, whatever becomes of the search."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from search.journal import Journal, Record
from search.row_split import RowSplit
from search.view.page import State, Status, Subject, render_search_page
from shearling.artefact import utc_now
from shearling.console import Advance, log
from shearling.errors import ShearlingError
from shearling.strict_json import write_text

PAGE_FILE = "search.html"

INTERVAL_S = 2.0
"""The page is written at most so often."""
PAUSES = 20
"""Writing it may take one part in so many of the time of a search, however long the journal grows."""


class Watch:
    """See the module.

    Args:
        page: the file; written whole each time.
        subject: what is searched.
        journal: of the search.
        split: which rows choose.
        planned: most evaluations that the algorithm asks for.
    """

    def __init__(self, page: Path, subject: Subject, journal: Journal, split: RowSplit, *, planned: int) -> None:
        self._page = page
        self._subject = subject
        self._journal = journal
        self._split = split
        self._planned = planned
        self._phase = "starting"
        self._started_s = time.monotonic()
        self._due_s = 0.0
        self._known_rows = rows_measured(journal.records)

    def enter(self, phase: str) -> None:
        """The next part of the search begins."""
        self._phase = phase
        self._write("running")

    def following(self, advance: Advance) -> Advance:
        """The same, and the page is kept up to date."""

        def advance_both(*, note: str | None = None) -> None:
            advance(note=note)
            if time.monotonic() >= self._due_s:
                self._write("running")

        return advance_both

    def finish(self, directory: Path, *, best: Record) -> None:
        """Write the last page.

        Args:
            directory: of the artefact.
            best: what was found.
        """
        self._phase = f"the best is {best.id}"
        write_text(directory / PAGE_FILE, self._render("finished", best))

    def lead_to(self, artefact: Path) -> None:
        """Let the page that was open lead to the last one, once that is in its place."""
        target = html.escape(f"{artefact.name}/{PAGE_FILE}")
        write_text(
            self._page,
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>finished</title>'
            f'<meta http-equiv="refresh" content="0; url={target}"></head>'
            f'<body><p>The search is finished: <a href="{target}">{target}</a></p></body></html>\n',
        )

    def stop(self, reason: str) -> None:
        """The search ends without a result."""
        self._phase = reason
        self._write("stopped")

    def _write(self, state: State) -> None:
        began_s = time.monotonic()
        write_text(self._page, self._render(state, None))
        now_s = time.monotonic()
        self._due_s = now_s + max(INTERVAL_S, PAUSES * (now_s - began_s))

    def _render(self, state: State, best: Record | None) -> str:
        elapsed_s = time.monotonic() - self._started_s
        status = Status(
            state=state,
            phase=self._phase,
            done=min(len(self._journal.explored), self._planned),
            planned=self._planned,
            elapsed_s=elapsed_s,
            left_s=self._left_s(elapsed_s) if state == "running" else None,
            updated=utc_now(),
        )
        return render_search_page(self._subject, status, self._journal.records, best)

    def _left_s(self, elapsed_s: float) -> float | None:
        done = rows_measured(self._journal.records)
        measured = done - self._known_rows
        if measured <= 0:
            return None
        left = max(0, rows_expected(self._split, self._planned) - done)
        return elapsed_s / measured * left


@contextmanager
def watching(watch: Watch, page: Path) -> Iterator[Watch]:
    """Around a search: however it ends, short of a kill, the page says so."""
    for left_over in page.parent.glob(f".{page.name}.tmp-*"):
        left_over.unlink(missing_ok=True)
    log.print(f"to look at while it runs: {page}")
    try:
        yield watch
    except ShearlingError as error:
        watch.stop(error.message)
        raise
    except BaseException as error:
        watch.stop(f"{type(error).__name__}; the same command continues")
        raise


def rows_measured(records: Sequence[Record]) -> int:
    """Rows whose answers were measured for these records."""
    reached: dict[tuple[int, ...], int] = {}
    total = 0
    for record in records:
        if record.part == "held_back":
            total += record.n_eval
            continue
        before = reached.get(record.choice_idx, 0)
        total += max(0, record.n_eval - before)
        reached[record.choice_idx] = max(before, record.n_eval)
    return total


def rows_expected(split: RowSplit, planned: int) -> int:
    """Rows that a search takes at most where accuracy is preferred: of all candidates, of the race, held back."""
    first, *later = split.parts
    rows, seen = planned * first, first
    for look, part in enumerate(later, start=1):
        rows += (1 + max(1, planned >> look)) * (part - seen)
        seen = part
    return rows + 2 * len(split.held_back)
