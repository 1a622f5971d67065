"""Commands that run a runtime themselves: done by a child, so that somebody is left who can say what ended it.

A fork rather than a new program: nothing is imported twice, what the child prints is the command's own output, and it
takes milliseconds. It comes before a runtime is loaded, while there is one thread.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import NoReturn

from serve.bench.crash import describe_end
from serve.visitor.own_process import end_with_parent

PASSED_ON = (signal.SIGINT, signal.SIGTERM)
"""Signals that mean the command, whichever process gets them."""


@dataclass(frozen=True)
class Undertaking:
    """What a child is about to do.

    Attributes:
        where: the model, as the user named it.
        settings: that it runs with, in words.
        remedy: settings that may avoid a crash, as the command takes them.
    """

    where: str
    settings: str
    remedy: str


def go_on_in_a_child(undertaking: Undertaking) -> None:
    """Return in a child, which does the rest of the command and ends with its parent.

    The parent waits, and leaves as the child does. Where a system cannot do this, the command goes on in this process.

    Raises:
        RuntimeCrashed: in the parent: a signal has ended the child.
        ResourceExhausted: in the parent: the system has killed it.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    for stream in (sys.stdout, sys.stderr):
        # None where the process was given none.
        if stream is not None:
            stream.flush()
    # A process that ignores the ends of its children is not told of them.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*PASSED_ON, signal.SIGCHLD))
    child = os.fork()
    if child == 0:
        end_with_parent()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    _leave_as(child, undertaking)


def _leave_as(child: int, undertaking: Undertaking) -> NoReturn:
    code = _wait_for(child)
    if code >= 0:
        raise SystemExit(code)
    raise describe_end(
        code, where=undertaking.where, settings=undertaking.settings, remedy=undertaking.remedy
    ) from None


def _wait_for(child: int) -> int:
    while True:
        found = signal.sigwaitinfo((*PASSED_ON, signal.SIGCHLD))
        if found.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
        elif found.si_code <= 0:
            # Of a process, to this one. What a terminal sends, whose code is above, the child has got as well.
            os.kill(child, found.si_signo)
