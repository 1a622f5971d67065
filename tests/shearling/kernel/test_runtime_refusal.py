"""What runtimes raise over files becomes an error of the file, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from openvino import opset13 as op

from shearling.errors import ArtefactCorrupt, UsageError
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.runtime_refusal import refusals


@pytest.mark.parametrize("error", [RuntimeError("Exception from here:\nthe reason\n"), Fail("the reason")])
def test_the_reason_stands_in_the_last_line(error):
    with (
        pytest.raises(ArtefactCorrupt, match="its runtime refuses it: the reason") as caught,
        refusals(Path("x")),
    ):
        raise error
    assert (caught.value.where, caught.value.exit_code) == ("x", 3)


@pytest.mark.parametrize("error", [UsageError("no"), ValueError("no"), MemoryError(), KeyboardInterrupt()])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, refusals():
        raise error
    assert caught.value is error


def test_an_output_that_is_not_there():
    x = op.parameter([1], np.float32)
    compiled = openvino_core().compile_model(ov.Model([op.relu(x)], [x]), "CPU")
    with pytest.raises(ArtefactCorrupt), refusals():
        compiled([np.ones(1, np.float32)])["logits"]
