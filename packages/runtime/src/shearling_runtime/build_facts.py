"""The prebuilt libraries, and what they were built from and for. The build of the wheel writes both."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from shearling_runtime.faults import RuntimeUnavailable

DIRECTORY = Path(__file__).with_name("libraries")
FACTS = "build.json"


@dataclass(frozen=True)
class BuildFacts:
    """What the build took from the toolchain.

    Attributes:
        openvino: the release whose operators these are, such as 2026.4.1.
        onnxruntime: the oldest ONNX Runtime that they run in, such as 1.17.
        openvino_library, onnxruntime_library: names of the files.
        operator_set: how an IR names our operators.
        properties: of OpenVINO, that packed models ran fastest with.
        sources: digest of the C++.
    """

    openvino: str
    onnxruntime: str
    openvino_library: str
    onnxruntime_library: str
    operator_set: str
    properties: dict[str, str]
    sources: str


@functools.cache
def read_build_facts() -> BuildFacts:
    """What the libraries in this installation are.

    Raises:
        RuntimeUnavailable: there are none.
    """
    path = DIRECTORY / FACTS
    if not path.is_file():
        raise RuntimeUnavailable(
            "this installation of shearling-runtime holds no libraries", remedy="Install it from its wheel"
        )
    return BuildFacts(**json.loads(path.read_text(encoding="utf-8")))
