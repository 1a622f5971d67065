"""A model is evaluated as it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shearling.evaluation.given_model import _OpenVINOModel
from shearling.kernel import openvino_extension


def test_packed_files_are_evaluated_with_the_properties_that_they_are_served_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def stop(xml: Path, **options: Any) -> None:
        asked.update(options)
        raise InterruptedError

    monkeypatch.setattr(openvino_extension, "compile_ir", stop)
    with pytest.raises(InterruptedError):
        _OpenVINOModel(tmp_path / "openvino_model.xml", {"PERFORMANCE_HINT": "LATENCY"})
    assert asked["preferred"] == openvino_extension.PREFERRED_PROPERTIES
    assert asked["properties"] == {"PERFORMANCE_HINT": "LATENCY"}, "what a user asks for comes first"
