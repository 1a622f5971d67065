"""Signals to the process of the tests, in which other tests have loaded OpenVINO."""

from __future__ import annotations

import ctypes

SS_DISABLE = 2
"""Of Linux's sigaltstack: handlers run on the stack of the thread."""


class _Stack(ctypes.Structure):
    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def leave_signal_stack() -> None:
    """Let handlers run on the thread's own stack.

    Pipelines of OpenVINO GenAI have cores of their own. Those that are dropped in the order they were made leave a
    signal stack that is no longer mapped (`shearling.kernel.openvino_core`), and the next signal ends the process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigaltstack(ctypes.byref(_Stack(None, SS_DISABLE, 0)), None) != 0:
        raise OSError(ctypes.get_errno(), "sigaltstack")
