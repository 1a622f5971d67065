"""Ctrl-C must reach Python after models were compiled and dropped in any order."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import faulthandler, gc, os, signal
import numpy, openvino
from openvino import opset13
from shearling.kernel.openvino_core import openvino_core

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


def test_the_core_knows_the_tokenizers_operators_whenever_it_was_made(tmp_path):
    program = (
        "import sys; from shearling.kernel.openvino_core import openvino_core; core = openvino_core()\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "import openvino; from openvino_tokenizers import convert_tokenizer; from "
        "tests.support.tiny_models import tiny_tokenizer\n"
        "openvino.save_model(convert_tokenizer(tiny_tokenizer()), sys.argv[1])\n"
        "core.compile_model(core.read_model(sys.argv[1]), 'CPU')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "tokenizer.xml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
