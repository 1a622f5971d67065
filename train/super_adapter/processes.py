"""The processes of one training: `torchrun --nproc-per-node 2 -m train ...` or `accelerate launch -m train ...`
starts several.

The main process makes every artefact and speaks; the others wait for it, join it for the training steps, and are
silent. A command that was started alone is the main process of one, and nothing here costs it anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from shearling.console import log

if TYPE_CHECKING:
    from accelerate import PartialState

LONGEST_WAIT = timedelta(days=1)
"""How long the others wait while the main process prunes a large model."""


def count() -> int:
    """Number of processes, as the launcher tells it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the main process; launchers call it rank 0."""
    return count() == 1 or int(os.environ["RANK"]) == 0


def silence_others() -> None:
    """Let only the main process write to the log."""
    log.quiet = not is_main()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if count() > 1:
        _state().wait_for_everyone()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process carries out the block; then the others do, and find what it made."""
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


def largest(value: int) -> int:
    """The largest value that any process brings, known to all."""
    if count() == 1:
        return value
    import torch

    shared = torch.tensor(value, device=_state().device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return int(shared)


def _state() -> PartialState:
    import torch
    from accelerate import PartialState

    # The Trainer forms its own state later, on the process group that this one opens.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
