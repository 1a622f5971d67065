"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, words: Collection[str] = ()) -> str:
    """The lines of a table; columns hold figures but for those whose headings are among `words`."""
    lines = [headings, ["---" if heading in words else "---:" for heading in headings], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
