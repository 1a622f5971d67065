"""What loading a packed model costs in memory: the copy that the kernels read, and nothing beside it for long."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from benchmarks.sparse_kernel import packed_product
from shearling.kernel.library import pack_matrix
from shearling.kernel.packed_format import ValueType
from tests.support.matrices import random_matrix

pytestmark = pytest.mark.alone

SIZE, LAYERS = 2048, 32
LOAD = """
import json, sys
from pathlib import Path
import numpy as np
from serve.bench.environment import memory_bytes, peak_memory_bytes
from shearling.kernel.openvino_extension import core_for

def load(path):
    core = core_for(path)
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    compiled(np.ones((1, 1, compiled.input(0).partial_shape[2].get_length()), np.float32))
    return compiled

warm = load(Path(sys.argv[1]))
before = memory_bytes()
Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory counts from here
loaded = load(Path(sys.argv[2]))
print(json.dumps({"added": peak_memory_bytes() - before}))
"""


def save_chain(path: Path, size: int, layers: int) -> int:
    """A model of square packed layers, each with a constant of its own; bytes of its weights."""
    packed = pack_matrix(random_matrix(ValueType.INT8, size, size))
    parameter = op.parameter([-1, -1, size], np.float32)
    end = parameter.output(0)
    for layer in range(layers):
        end = packed_product(packed, size, layer)(end)
    ov.save_model(ov.Model([op.result(end)], [parameter]), path, compress_to_fp16=False)
    return path.with_suffix(".bin").stat().st_size


def test_loading_takes_at_most_a_fifth_more_than_the_file(tmp_path):
    save_chain(tmp_path / "small.xml", 64, 1)
    size = save_chain(tmp_path / "model.xml", SIZE, LAYERS)
    assert size > 64 << 20
    command = [sys.executable, "-c", LOAD, str(tmp_path / "small.xml"), str(tmp_path / "model.xml")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert json.loads(done.stdout)["added"] <= 1.2 * size
