"""How a measuring process answers: one JSON line in, one JSON line out, on the pipes that its parent holds.

    {"do": "load", "deployment": ..., "options": ...}         -> import_s, load_s, memory_before_bytes, facts
    {"do": "generate", "rows": [[...], ...], "new_tokens": N} -> generation, started_s, wall_s, waited_s, stolen_s,
                                                                 preemptions, instructions
    {"do": "settle", "threads": N, "huge_pages": true}        -> huge_bytes, refused_bytes
    {"do": "report"}                                          -> peak_bytes, private_bytes, huge_bytes, cpus, nice

An error is {"error": class name, "message", "where", "remedy"}. End of input ends the process.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from serve.visitor.counters import instructions
from serve.visitor.huge_pages import collapse_memory
from serve.visitor.interruptions import preemptions, stolen_s
from serve.visitor.own_process import (
    end_with_parent,
    huge_memory_bytes,
    peak_memory_bytes,
    pin,
    private_memory_bytes,
    raise_priority,
    usable_cpus,
)
from serve.visitor.waiting import thread_times, waited_between

Reply = dict[str, Any]
Answer = Callable[[Mapping[str, Any]], Reply]


def answer_requests(answer: Answer, describe_error: Callable[[Exception], Reply | None]) -> None:
    """Answer requests until the input ends.

    Args:
        answer: does one request.
        describe_error: what to reply to an exception; None lets it end the process.
    """
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # It may be stopped when its parent is killed, and would never see the end of its input.
    end_with_parent()
    # Before any thread exists: they inherit both.
    raise_priority()
    instructions()
    # Libraries write to descriptor 1 as they please; the protocol keeps the real one for itself.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # what it does not describe is raised again
            described = describe_error(error)
            if described is None:
                raise
            reply = described
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


def report() -> Reply:
    """What this process holds, and where it may run."""
    memory = {
        "peak_bytes": peak_memory_bytes(),
        "private_bytes": private_memory_bytes(),
        "huge_bytes": huge_memory_bytes(),
    }
    return {**memory, "cpus": usable_cpus(), "nice": os.getpriority(os.PRIO_PROCESS, 0)}


def settle(request: Mapping[str, Any]) -> Reply:
    """Pin this process, and move what the warm-up has allocated into huge pages."""
    pin(request["threads"])
    # What was imported stays: looking through it before every generation would take tens of milliseconds.
    gc.collect()
    gc.freeze()
    moved, refused = collapse_memory() if request["huge_pages"] else (0, 0)
    return {"huge_bytes": moved, "refused_bytes": refused}


def timed(generate: Callable[[], Reply]) -> Reply:
    """One generation, its wall time, what of that its computing threads lost to others, and what else was counted."""
    gc.collect()
    gc.disable()
    counters = {"stolen_s": stolen_s, "preemptions": preemptions, "instructions": instructions}
    try:
        earlier = {name: count() for name, count in counters.items()}
        before, began_s, started_s = thread_times(), time.process_time(), time.perf_counter()
        generation = generate()
        wall_s, own_s, after = time.perf_counter() - started_s, time.process_time() - began_s, thread_times()
    finally:
        gc.enable()
    later = _since(earlier, counters)
    waited = waited_between(before, after)
    if waited is not None and len(usable_cpus()) == 1:
        # Where one of its own threads ran meanwhile, the time went to no other process.
        waited = min(waited, max(0.0, wall_s - own_s))
    # Two clocks: what they disagree by must not leave a time of nothing.
    return {
        "generation": generation,
        "started_s": started_s,
        "wall_s": wall_s,
        "waited_s": None if waited is None else min(waited, 0.999 * wall_s),
        **later,
    }


def _since(earlier: Mapping[str, Any], counters: Mapping[str, Callable[[], Any]]) -> Reply:
    return {
        name: None if before is None or (now := counters[name]()) is None else now - before
        for name, before in earlier.items()
    }
