"""Greedy decoding and its clock, where the runtime has none of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

TIMING_SOURCE = "monotonic clock after each step of the greedy loop of serve.visitor.greedy"
Integers = np.ndarray[Any, np.dtype[np.int64]]
Step = Callable[[Integers, int], Integers]
"""Reads tokens, [B, S], of which so many went before; the likeliest ones behind them, [B]."""


def decode_greedily(step: Step, rows: Sequence[Sequence[int]], new_tokens: int) -> dict[str, Any]:
    """Decode a batch.

    Args:
        step: one pass of the model.
        rows: token ids, [batch][length].
        new_tokens: how many to make; no token ends it.

    Returns:
        The fields of a `serve.runtimes.runtime.Generation`.
    """
    made, times_s = [], []
    started_s = time.perf_counter()
    chunk, seen = np.asarray([list(row) for row in rows], dtype=np.int64), 0
    for _ in range(new_tokens):
        chosen = step(chunk, seen)
        times_s.append(time.perf_counter())
        made.append([int(token) for token in chosen])
        seen += chunk.shape[1]
        chunk = chosen.astype(np.int64)[:, None]
    gaps_s = [later - earlier for earlier, later in zip(times_s, times_s[1:])]
    tokens = [list(row) for row in zip(*made)]
    return generation(tokens, started_s, times_s[0] - started_s, gaps_s, times_s[-1] - started_s)


def likeliest(scores: Any) -> Integers:
    """The best token behind the last position.

    Args:
        scores: [B, S, V], or [B, V] of a model that has one answer.
    """
    last = scores if scores.ndim == 2 else scores[:, -1]
    best: Integers = last.argmax(axis=-1)
    return best


def generation(
    tokens: Sequence[Sequence[int]], started_s: float, ttft_s: float, gaps_s: Sequence[float], total_s: float
) -> dict[str, Any]:
    """The fields of a `serve.runtimes.runtime.Generation`.

    Args:
        tokens: of each row.
        started_s: see there, as of the others.
        ttft_s: to the first token.
        gaps_s: between tokens.
        total_s: of the call.
    """
    times: dict[str, Any] = {"started_s": started_s, "ttft_s": ttft_s, "gaps_s": list(gaps_s), "total_s": total_s}
    first, *others = (list(row) for row in tokens)
    return {"token_ids": first, "other_rows": others, **times}


class Rereader:
    """Lets a model without a cache read everything again for each token.

    Args:
        read: the scores of a whole text, see `likeliest`.
    """

    def __init__(self, read: Callable[[Integers], Any]) -> None:
        self._read = read
        self._text: Integers = np.zeros((0, 0), dtype=np.int64)

    def step(self, chunk: Integers, seen: int) -> Integers:
        """See `Step`."""
        self._text = chunk if seen == 0 else np.concatenate([self._text, chunk], axis=1)
        return likeliest(self._read(self._text))
