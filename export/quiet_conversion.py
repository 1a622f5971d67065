"""Converters that keep their talk to themselves."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_conversion() -> Iterator[None]:
    """Keep the converters' progress bars off stdout, where results go, and their tracer warnings to themselves.

    The warnings concern Python values that tracing fixes; that they were fixed rightly is what the parity check shows.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
