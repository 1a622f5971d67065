"""What can go wrong. The exit codes of `shearling-run` are those of Shearling."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class RuntimeFault(Exception):
    """Base of every error that this package raises.

    Args:
        message: what happened, with the values involved.
        where: the file or directory concerned.
        remedy: what the reader can do about it.
    """

    exit_code: ClassVar[int] = 5

    def __init__(self, message: str, *, where: Path | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}. {self.remedy}" if self.remedy else head


class RequestFault(RuntimeFault):
    """The request contradicts itself or the model."""

    exit_code = 2


class ModelUnusable(RuntimeFault):
    """A file or directory is missing, damaged, or holds something else."""

    exit_code = 3


class RuntimeUnavailable(RuntimeFault):
    """A runtime is not installed, or these operators were built for another version of it."""

    exit_code = 4
