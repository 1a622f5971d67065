"""What loading a packed model costs in memory: the copy that the kernels read, and nothing beside it for long."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from benchmarks.sparse_kernel import packed_product
from shearling.kernel.library import pack_matrix
from shearling.kernel.openvino_extension import node_factory
from shearling.kernel.packed_format import Encoding, ValueType
from tests.support.matrices import random_matrix

pytestmark = pytest.mark.alone

SIZE, LAYERS, VOCABULARY = 2048, 32, 40000
LOAD = """
import json, sys
from pathlib import Path
import numpy as np
from serve.visitor.own_process import memory_bytes, peak_memory_bytes
from shearling.kernel.openvino_extension import core_for

def load(path):
    core = core_for(path)
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    port = compiled.input(0)
    widths = [size.get_length() for size in list(port.partial_shape)[2:]]
    compiled(np.zeros((1, 1, *widths), port.get_element_type().to_dtype()))
    return compiled

warm = load(Path(sys.argv[1]))
before = memory_bytes()
Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory counts from here
loaded = load(Path(sys.argv[2]))
print(json.dumps({"peak": peak_memory_bytes() - before, "kept": memory_bytes() - before}))
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


def save_tied(path: Path, size: int, rows: int) -> int:
    """An embedding and its head, of one constant; bytes of its weights."""
    parameter = op.parameter([-1, -1], np.int64)
    weights = op.constant(pack_matrix(random_matrix(ValueType.INT8, rows, size), Encoding.DENSE)).output(0)
    attributes = {"rows": rows, "columns": size, "precision": "auto", "format_version": 1}
    embedded = node_factory().create("SparseEmbedding", [parameter.output(0), weights], attributes)
    head = node_factory().create("SparseHead", [embedded.output(0), weights], attributes)
    ov.save_model(ov.Model([op.result(head.output(0))], [parameter]), path, compress_to_fp16=False)
    return path.with_suffix(".bin").stat().st_size


def added_bytes(directory: Path, save: Callable[[Path, int, int], int], count: int) -> tuple[dict[str, int], int]:
    """What loading a model adds to the memory of a process at most and for good, and the bytes of its weights."""
    save(directory / "small.xml", 64, 1)
    size = save(directory / "model.xml", SIZE, count)
    assert size > 64 << 20
    command = [sys.executable, "-c", LOAD, str(directory / "small.xml"), str(directory / "model.xml")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout), size


def test_loading_takes_at_most_a_fifth_more_than_the_file(tmp_path):
    added, size = added_bytes(tmp_path, save_chain, LAYERS)
    assert added["peak"] <= 1.2 * size


def test_an_embedding_and_its_head_keep_one_copy(tmp_path):
    added, size = added_bytes(tmp_path, save_tied, VOCABULARY)
    assert 0.8 * size <= added["kept"] <= 1.2 * size
