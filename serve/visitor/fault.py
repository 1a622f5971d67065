"""Errors of a process that cannot import ours: they name the class that the parent raises."""

from __future__ import annotations

from typing import Any


class VisitorFault(Exception):
    """Becomes the class `name` of `shearling.errors` in the parent.

    Args:
        name: of that class.
        message: what happened.
        where: the file or directory.
        remedy: what to do.
    """

    def __init__(self, name: str, message: str, *, where: Any = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.message = message
        self.where = None if where is None else str(where)
        self.remedy = remedy


def last_words(error: BaseException) -> str:
    """The last line of what a library said, which holds its reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
