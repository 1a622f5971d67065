"""The operators in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shearling_runtime.build_facts import DIRECTORY, read_build_facts
from shearling_runtime.faults import RuntimeUnavailable

if TYPE_CHECKING:
    import onnxruntime


def operators() -> str:
    """The library that `onnxruntime.SessionOptions.register_custom_ops_library` takes.

    Raises:
        RuntimeUnavailable: ONNX Runtime is not installed, or older than the operators.
    """
    facts = read_build_facts()
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(
            f"ONNX Runtime cannot be imported: {error}", remedy=f"pip install 'onnxruntime>={facts.onnxruntime}'"
        ) from error
    if _numbers(onnxruntime.__version__) < _numbers(facts.onnxruntime):
        raise RuntimeUnavailable(
            f"these operators need ONNX Runtime {facts.onnxruntime}, and {onnxruntime.__version__} is installed",
            remedy=f"pip install 'onnxruntime>={facts.onnxruntime}'",
        )
    return str(DIRECTORY / facts.onnxruntime_library)


def session_options(options: onnxruntime.SessionOptions | None = None) -> onnxruntime.SessionOptions:
    """Options of a session that can run models with the operators.

    Args:
        options: to extend; None makes new ones.

    Raises:
        RuntimeUnavailable: see `operators`.
    """
    library = operators()
    import onnxruntime

    extended = onnxruntime.SessionOptions() if options is None else options
    extended.register_custom_ops_library(library)
    return extended


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
