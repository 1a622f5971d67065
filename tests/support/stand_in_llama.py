"""A stand-in for llama-cpp-python that takes its time, for checks whose verdict must not depend on a real model."""

from __future__ import annotations

from pathlib import Path

from tests.support.environments import environment_with

SOURCE = """
import ctypes, os, signal, time

STEP_S, DIES_UNLESS_THREADS, SIGNAL, STRIDE = {step_s}, {threads}, "{signal}", {stride}
LOAD_S, HOARD_BYTES = {load_s}, {hoard_bytes}

class Llama:
    def __init__(self, path, *, n_ctx, n_batch, n_threads, n_threads_batch, flash_attn, use_mmap, verbose):
        self.n_threads, self.ctx = n_threads, self
        time.sleep(LOAD_S)
        self.hoard = b"x" * HOARD_BYTES

    def n_vocab(self):
        return 400

    def reset(self):
        self.last = None

    def eval(self, tokens):
        if DIES_UNLESS_THREADS and self.n_threads != DIES_UNLESS_THREADS:
            os.kill(os.getpid(), getattr(signal, SIGNAL))
        time.sleep(STEP_S)
        self.last = tokens[-1]

def llama_get_logits_ith(ctx, index):
    logits = (ctypes.c_float * ctx.n_vocab())()
    logits[(ctx.last + STRIDE) % ctx.n_vocab()] = 1
    return logits
"""


def stand_in(
    *,
    step_s: float = 0.003,
    dies_unless_threads: int | None = None,
    signal: str = "SIGFPE",
    stride: int = 1,
    load_s: float = 0.0,
    hoard_bytes: int = 0,
) -> str:
    """Its source.

    Args:
        step_s: that one call takes.
        dies_unless_threads: the only number of threads at which it lives.
        signal: that it dies of.
        stride: from a token to the next one.
        load_s: that loading takes.
        hoard_bytes: that it keeps of memory.
    """
    return SOURCE.format(
        step_s=step_s,
        threads=dies_unless_threads,
        signal=signal,
        stride=stride,
        load_s=load_s,
        hoard_bytes=hoard_bytes,
    )


def stand_in_environments(root: Path, sources: dict[str, str]) -> dict[str, Path]:
    """An environment with each source as its llama.cpp, in directories of their names."""
    return {
        name: environment_with(
            root / name, module="llama_cpp", source=source, distribution="llama-cpp-python", sees_ours=True
        )
        for name, source in sources.items()
    }
