"""How the command of a benchmark ends where it cannot do what it was asked for: as those of the pipeline end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

from shearling.command_line import explain_os_error
from shearling.console import log
from shearling.errors import ShearlingError

Given = ParamSpec("Given")
SYSTEM_FAULT = 4


def command(main: Callable[Given, int]) -> Callable[Given, int]:
    """A `main` whose bad input is one line on stderr, with its exit code, and no traceback."""

    @functools.wraps(main)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except ShearlingError as error:
            log.print(f"error: {error}", style="red", markup=False)
            return error.exit_code
        except OSError as error:
            log.print(f"error: {explain_os_error(error)}", style="red", markup=False)
            return SYSTEM_FAULT

    return wrapped
