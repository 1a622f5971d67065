"""Ctrl-C must reach Python after models were compiled and dropped in any order."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import faulthandler, gc, os, signal
import numpy, openvino
from openvino import opset13
from shearling.openvino_core import openvino_core

faulthandler.enable()

def compiled():
    value = opset13.parameter([1, 8], numpy.float32)
    return openvino_core().compile_model(openvino.Model([opset13.relu(value)], [value]), "CPU")

first, second = compiled(), compiled()
del first
gc.collect()
del second
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interruption_after_compiled_models_is_no_segmentation_fault():
    # A child of a background job ignores SIGINT until told otherwise.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + SCRIPT
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
