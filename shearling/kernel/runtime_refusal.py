"""What a runtime raises over a file that was given to us, as an error of that file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shearling.errors import ArtefactCorrupt

ONNX_RUNTIME = "onnxruntime."


@contextmanager
def refusals(where: Path | None = None) -> Iterator[None]:
    """Around what OpenVINO or ONNX Runtime reads and computes, and nothing else.

    Args:
        where: the file or directory; None where it is not known.

    Raises:
        ArtefactCorrupt: the runtime refuses it, or it has no output of the name that is asked for.
    """
    try:
        yield
    except Exception as error:
        # OpenVINO raises RuntimeError, and KeyError for an output; ONNX Runtime exceptions without a common base.
        if not isinstance(error, (RuntimeError, KeyError)) and not type(error).__module__.startswith(ONNX_RUNTIME):
            raise
        raise ArtefactCorrupt(
            f"its runtime refuses it: {last_line(error)}", where=where, remedy="Export again"
        ) from error


def last_line(error: Exception) -> str:
    """Of what a runtime says, the last line: the others name its own files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
