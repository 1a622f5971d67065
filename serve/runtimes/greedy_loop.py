"""The greedy loop of runtimes that have none of their own: one token at a time, and the time of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

from serve.runtimes.runtime import Generation
from serve.runtimes.tokenization import TextStream


def greedy_loop(
    first: Callable[[], int],
    following: Callable[[int], int],
    *,
    max_new_tokens: int,
    end_ids: frozenset[int],
    stream: TextStream | None,
) -> Generation:
    """Compute tokens until there are enough, or one ends the text.

    Args:
        first: reads the prompt; the likeliest token behind it.
        following: reads one token; the likeliest behind that.
        max_new_tokens: at least 1.
        end_ids: tokens that end it; such a one is computed and timed, but not part of the text.
        stream: takes every token of the text.
    """
    times_s, tokens = [time.perf_counter()], list[int]()
    while len(tokens) < max_new_tokens:
        token = following(tokens[-1]) if tokens else first()
        times_s.append(time.perf_counter())
        if token in end_ids:
            break
        tokens.append(token)
        if stream:
            stream.push(token)
    if stream:
        stream.finish()
    started_s, first_s, *_ = times_s
    gaps_s = tuple(later - earlier for earlier, later in pairwise(times_s[1:]))
    return Generation(
        token_ids=tuple(tokens), ttft_s=first_s - started_s, gaps_s=gaps_s, total_s=time.perf_counter() - started_s
    )
