"""Errors of a worker, so that they can be told in another process."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from shearling.errors import ShearlingError
from shearling.resources import memory_exhausted


def attempt(function: Callable[..., Any], *arguments: Any) -> tuple[Any, ShearlingError | None]:
    """What a function returns, or the error that it raised.

    An error that is not of this project may not exist elsewhere, and becomes one that does; its traceback goes along as
    a note.
    """
    try:
        return function(*arguments), None
    except ShearlingError as error:
        told = error
    except MemoryError:
        raise
    # Whatever it is, it has to be told where somebody reads it.
    except Exception as error:
        told = memory_exhausted(error) or ShearlingError(f"a worker failed: {type(error).__name__}: {error}")
        told.add_note(traceback.format_exc())
    told.__cause__ = told.__context__ = None
    return None, told
