"""What a training computes before its first step, and finds again when it is continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def made_once(file: Path, make: Callable[[], T], *, load: Callable[[Path], T], save: Callable[[Path, T], None]) -> T:
    """What a training has begun with.

    Made anew it could differ, since it rests on sums, which another number of threads or another processor rounds
    otherwise, and would not fit the adapter that was trained.

    Args:
        file: where it is kept; written where it is not there, and complete or absent.
        make: makes it.
        load: reads the file.
        save: writes one.
    """
    if file.is_file():
        return load(file)
    made = make()
    unfinished = file.with_suffix(".unfinished")
    save(unfinished, made)
    unfinished.replace(file)
    return made
