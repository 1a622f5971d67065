"""One deployment in a process of its own, driven over a pipe: what it needs in memory and to load is its own alone.

Started by `serve.bench.worker_process` as `python -m serve.bench.worker`. One JSON line in, one JSON line out:

    {"do": "load", "deployment": ..., "options": ...}         -> a LoadReport
    {"do": "generate", "rows": [[...], ...], "new_tokens": N} -> a Timed
    {"do": "settle", "threads": N, "huge_pages": true}        -> {"huge_bytes"}
    {"do": "report"}                                          -> a ProcessReport

An error is {"error": class name, "message", "where", "remedy"}. End of input ends the process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from serve.bench.environment import (
    huge_memory_bytes,
    memory_bytes,
    peak_memory_bytes,
    pin,
    private_memory_bytes,
    raise_priority,
    usable_cpus,
)
from serve.bench.huge_pages import collapse_memory
from serve.bench.waiting import waited_s
from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import Decoding, RunOptions, Runtime, load_runtime
from shearling.command_line import quiet_libraries
from shearling.errors import ShearlingError
from shearling.registry.runtimes import RUNTIMES


class Worker:
    """Holds one runtime."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do one request of the protocol above."""
        if request["do"] == "load":
            return self._load(request)
        if request["do"] == "report":
            memory = {
                "peak_bytes": peak_memory_bytes(),
                "private_bytes": private_memory_bytes(),
                "huge_bytes": huge_memory_bytes(),
            }
            return memory | {"cpus": usable_cpus(), "nice": os.getpriority(os.PRIO_PROCESS, 0)}
        if request["do"] == "settle":
            pin(request["threads"])
            return {"huge_bytes": collapse_memory() if request["huge_pages"] else 0}
        if self._runtime is None:
            raise ShearlingError("asked to generate before anything was loaded")
        work = Decoding(max_new_tokens=request["new_tokens"])
        gc.collect()
        gc.disable()
        try:
            before_s, started_s = waited_s(), time.perf_counter()
            generation = self._runtime.generate(request["rows"], work)
            wall_s, after_s = time.perf_counter() - started_s, waited_s()
        finally:
            gc.enable()
        # Two clocks: what they disagree by must not leave a time of nothing.
        waited = None if before_s is None or after_s is None else min(after_s - before_s, 0.999 * wall_s)
        return {"generation": generation.model_dump(mode="json"), "wall_s": wall_s, "waited_s": waited}

    def _load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        deployment = Deployment.model_validate_json(json.dumps(request["deployment"]))
        options = RunOptions.model_validate_json(json.dumps(request["options"]))
        if options.threads != 1:
            # Before the pools of threads exist; a single thread is pinned after loading, which goes faster on all CPUs.
            pin(options.threads)
        started_s = time.perf_counter()
        entry = RUNTIMES.get(deployment.format)
        for name in (*entry.packages, *entry.companions):
            importlib.import_module(name)
        imported_s = time.perf_counter()
        before_bytes = memory_bytes()
        self._runtime = load_runtime(deployment, options)
        return {
            "import_s": imported_s - started_s,
            "load_s": time.perf_counter() - imported_s,
            "memory_before_bytes": before_bytes,
            "facts": self._runtime.facts.model_dump(mode="json"),
        }


def main() -> None:
    """Answer requests until the input ends."""
    # Ctrl-C reaches the whole process group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_libraries()
    # Before any thread exists: they inherit it.
    raise_priority()
    # Libraries write to descriptor 1 as they please; the protocol keeps the real one for itself.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            reply = worker.answer(json.loads(line))
        except ShearlingError as error:
            reply = {
                "error": type(error).__name__,
                "message": error.message,
                "where": error.where,
                "remedy": error.remedy,
            }
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
