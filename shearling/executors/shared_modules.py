"""Imports what every worker needs, in the process that workers are forked from.

Nothing is computed here: threads of a library do not survive a fork.
"""

import contextlib
import gc
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from shearling.command_line import quiet_libraries


@contextmanager
def _silence() -> Iterator[None]:
    """What libraries say when they are imported is no concern of the screen that this process shares."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


# Ctrl-C reaches the whole group; who asked for the work decides what becomes of it.
signal.signal(signal.SIGINT, signal.SIG_IGN)
quiet_libraries()
# A worker meets the same error when it opens its work, and tells it; here it would end all that could be started.
with contextlib.suppress(Exception), _silence(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft  # noqa: F401  (what stands in memory from here on is what a fork begins with)
    import torch  # noqa: F401  (likewise)
    import transformers.modeling_utils  # noqa: F401  (likewise)

# What stands here is not collected in a worker, which would copy the pages that it has in common with the others.
gc.collect()
gc.freeze()
