"""The measuring process of another environment; see `serve.visitor.protocol`."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.visitor.fault import VisitorFault, last_words
from serve.visitor.huge_pages import refuse_huge_pages
from serve.visitor.own_process import memory_bytes, pin
from serve.visitor.protocol import answer_requests, report, settle, timed

ENGINES = {
    "openvino": ("serve.visitor.ir:VisitedIr", ("openvino",)),
    "genai": ("serve.visitor.genai:VisitedGenai", ("openvino", "openvino_genai")),
    "onnx": ("serve.visitor.onnx_graph:VisitedOnnx", ("onnxruntime",)),
    "torch": ("serve.visitor.torch_directory:VisitedTorch", ("torch", "transformers")),
    "gguf": ("serve.visitor.gguf_file:VisitedGguf", ("llama_cpp",)),
}
"""What runs a model, and what it imports, which is not part of the time to load."""


class Visitor:
    """Holds one model."""

    def __init__(self) -> None:
        self._model: Any = None
        self._where: str | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do one request of the protocol."""
        if request["do"] == "load":
            return self._load(request["deployment"], request["options"])
        if request["do"] == "report":
            return report()
        if request["do"] == "settle":
            return settle(request)
        try:
            return timed(lambda: self._model.generate(request["rows"], request["new_tokens"]))
        except VisitorFault as fault:
            fault.where = fault.where or self._where
            raise
        except Exception as error:  # whatever the runtime raises: the model that it was given made it
            raise VisitorFault(
                "ModelUnsupported", f"it does not run: {last_words(error)}", where=self._where
            ) from error

    def _load(self, deployment: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        implementation, modules = ENGINES[deployment["engine"]]
        self._where = deployment["label"]
        if not options["huge_pages"]:
            refuse_huge_pages()
        if options["threads"] != 1:
            # Before the pools of threads exist; a single thread is pinned after loading, which goes faster on all CPUs.
            pin(options["threads"])
        started_s = time.perf_counter()
        for name in modules:
            _require(name)
        imported_s = time.perf_counter()
        before_bytes = memory_bytes()
        module, _, name = implementation.partition(":")
        model_class = getattr(importlib.import_module(module), name)
        self._model = model_class(Path(deployment["opened"]), options, deployment["properties"])
        facts = self._model.facts
        facts["settings"]["python"] = "{}.{}.{}".format(*sys.version_info[:3])
        facts["settings"]["numpy"] = importlib.import_module("numpy").__version__
        return {
            "import_s": imported_s - started_s,
            "load_s": time.perf_counter() - imported_s,
            "memory_before_bytes": before_bytes,
            "facts": facts,
        }


def _require(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # a library of another system raises what it likes
        raise VisitorFault(
            "PackageMissing", f"{name} cannot be imported there: {last_words(error)}", where=sys.prefix
        ) from error


def describe_error(error: Exception) -> dict[str, Any] | None:
    """A fault as a reply; any other error ends the process, and its last line is told."""
    if not isinstance(error, VisitorFault):
        return None
    return {"error": error.name, "message": error.message, "where": error.where, "remedy": error.remedy}


if __name__ == "__main__":
    for variable in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(variable, "1")
    answer_requests(Visitor().answer, describe_error)
