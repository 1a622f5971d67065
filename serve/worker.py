"""One deployment in a process of its own, driven over a pipe: what it needs in memory and to load is its own alone.

Started by `serve.worker_process` as `python -m serve.worker`. One JSON line in, one JSON line out:

    {"do": "load", "deployment": ..., "options": ...}         -> {"import_s", "load_s", "memory_before_bytes", "facts"}
    {"do": "generate", "token_ids": [...], "new_tokens": N}   -> a Generation
    {"do": "memory"}                                          -> {"peak_bytes"}

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

from serve.deployment import Deployment
from serve.environment import memory_bytes, peak_memory_bytes
from serve.runtime import RunOptions, Runtime, load_runtime
from shearling.command_line import quiet_libraries
from shearling.errors import ShearlingError

IMPORTS = {"openvino": ("openvino", "openvino_genai"), "onnx": ("onnxruntime", "tokenizers"), "torch": ("torch", "transformers")}


class Worker:
    """Holds one runtime."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do one request of the protocol above."""
        if request["do"] == "load":
            return self._load(request)
        if request["do"] == "memory":
            return {"peak_bytes": peak_memory_bytes()}
        if self._runtime is None:
            raise ShearlingError("asked to generate before anything was loaded")
        gc.collect()
        gc.disable()
        try:
            generation = self._runtime.generate(request["token_ids"], max_new_tokens=request["new_tokens"])
        finally:
            gc.enable()
        return generation.model_dump(mode="json")

    def _load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        deployment = Deployment.model_validate_json(json.dumps(request["deployment"]))
        options = RunOptions.model_validate_json(json.dumps(request["options"]))
        started_s = time.perf_counter()
        for name in IMPORTS[deployment.format]:
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
    # Libraries write to descriptor 1 as they please; the protocol keeps the real one for itself.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            reply = worker.answer(json.loads(line))
        except ShearlingError as error:
            reply = {"error": type(error).__name__, "message": error.message, "where": error.where, "remedy": error.remedy}
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
