"""The one OpenVINO core of this process.

The CPU plugin of each core exchanges the signal stack of the thread, and puts back what it found when it is unloaded.
Two cores unloaded in the order they were made leave a stack that is no longer mapped, and the next Ctrl-C is a
segmentation fault.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino


@functools.cache
def openvino_core() -> openvino.Core:
    """The core that reads and compiles everything here; it lives as long as the process."""
    import openvino

    # Its operators are known to those cores alone that are made after it was imported.
    import openvino_tokenizers  # noqa: F401 (importing it is what registers them)

    return openvino.Core()
