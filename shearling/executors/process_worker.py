"""What runs in a process of the executor `processes`; imports nothing but what the work itself needs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from shearling.executors.attempt import attempt
from shearling.executors.executor import OpenWork


def serve_pipe(
    pipe: Connection, open_work: OpenWork, errors: str, *, pulse_s: float, environment: Mapping[str, str]
) -> None:
    """Open the work and do what comes through the pipe, until the other end is closed.

    Args:
        pipe: jobs come as (ticket, request); what is sent is (kind, ticket, content).
        open_work: called once.
        errors: file that takes what libraries write on the screen.
        pulse_s: between two signs of life.
        environment: of the process that asked; a fork has that of the process it was forked from.
    """
    os.environ.clear()
    os.environ.update(environment)
    # Ctrl-C reaches the whole group; who asked for the work decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _redirect(errors)
    lock = threading.Lock()

    def send(kind: str, ticket: int | None, content: Any) -> None:
        with lock:
            pipe.send((kind, ticket, content))

    threading.Thread(target=_pulse, args=(send, pulse_s), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        work, error = attempt(open_work)
        send("opened" if error is None else "failed", None, error)
        if error is not None:
            return
        while True:
            ticket, request = pipe.recv()
            outcome, error = attempt(work, request)
            send("done" if error is None else "failed", ticket, outcome if error is None else error)


def _redirect(errors: str) -> None:
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.stdout.flush()
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def _pulse(send: Any, pulse_s: float) -> None:
    """Say every few seconds that the process lives; end it where nobody listens any more, whatever it is doing."""
    while True:
        try:
            send("alive", None, None)
        except OSError:
            os._exit(1)
        time.sleep(pulse_s)
