"""One deployment in a process of its own, driven over a pipe: what it needs in memory and to load is its own alone.

Started by `serve.bench.worker_process` as `python -m serve.bench.worker`; `serve.visitor.protocol` says how it is asked
and answers. In an environment that is not ours, `serve.visitor` takes its place.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping
from typing import Any

from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import Decoding, RunOptions, Runtime, load_runtime
from serve.visitor.huge_pages import refuse_huge_pages
from serve.visitor.own_process import memory_bytes, pin
from serve.visitor.protocol import answer_requests, report, settle, timed
from shearling.command_line import quiet_libraries
from shearling.errors import ShearlingError
from shearling.registry.runtimes import RUNTIMES


class Worker:
    """Holds one runtime."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do one request of the protocol."""
        if request["do"] == "load":
            return self._load(request)
        if request["do"] == "report":
            return report()
        if request["do"] == "settle":
            return settle(request)
        runtime = self._runtime
        if runtime is None:
            raise ShearlingError("asked to generate before anything was loaded")
        work = Decoding(max_new_tokens=request["new_tokens"])
        return timed(lambda: runtime.generate(request["rows"], work).model_dump(mode="json"))

    def _load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        deployment = Deployment.model_validate_json(json.dumps(request["deployment"]))
        options = RunOptions.model_validate_json(json.dumps(request["options"]))
        if not options.huge_pages:
            refuse_huge_pages()
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


def describe_error(error: Exception) -> dict[str, Any] | None:
    """Ours as a reply; any other ends the process, and its last line is told."""
    if not isinstance(error, ShearlingError):
        return None
    return {"error": type(error).__name__, "message": error.message, "where": error.where, "remedy": error.remedy}


def main() -> None:
    """Answer requests until the input ends."""
    quiet_libraries()
    answer_requests(Worker().answer, describe_error)


if __name__ == "__main__":
    main()
