"""The operator inside a real ONNX Runtime: the library's own product, for any shape and number of threads, and what
it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from shearling.errors import ArtefactCorrupt, ArtefactMissing, ModelUnsupported
from shearling.kernel.library import multiply
from shearling.kernel.onnx_runtime_extension import (
    DOMAIN,
    DOMAIN_VERSION,
    IMPORT,
    OPERATOR,
    needs_operators,
    node_attributes,
    session_options_for,
)
from shearling.kernel.onnx_runtime_extension import open_session as open_graph
from shearling.kernel.packed_format import Encoding, ValueType, pack, read_header
from tests.support.matrices import dense, random_matrix
from tests.support.onnxruntime_headers import needs_headers

ROWS, COLUMNS = 300, 257


def write_graph(path, packed, *, constant=True, **changes):
    """One node, with dynamic shapes around it."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = helper.make_tensor_value_info("weights", TensorProto.UINT8, ["bytes"])
    node = helper.make_node(
        OPERATOR,
        ["x", "weights"],
        ["y"],
        name="the_product",
        domain=DOMAIN,
        **{**node_attributes(ROWS, COLUMNS), **changes},
    )
    initializers = [numpy_helper.from_array(packed, "weights")] if constant else []
    graph = helper.make_graph([node], "one", [x] if constant else [x, weights], [y], initializers)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def open_session(path, *, threads=2):
    options = session_options_for(path)
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def activations(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal((*shape, COLUMNS)).astype(np.float32)


@needs_headers
@pytest.mark.parametrize(
    ("encoding", "two_of_four"), [(Encoding.DENSE, False), (Encoding.BITMASK, False), (Encoding.BITMASK, True)]
)
@pytest.mark.parametrize("value_type", list(ValueType))
def test_it_is_the_product_of_the_library(tmp_path, value_type, encoding, two_of_four):
    group = None if value_type is ValueType.BF16 else 128
    matrix = random_matrix(value_type, ROWS, COLUMNS, keep=0.9, two_of_four=two_of_four, group_size=group)
    packed = pack(matrix, encoding)
    path = write_graph(tmp_path / "model.onnx", packed)
    for threads in (1, 2, 3):
        session = open_session(path, threads=threads)
        for count in (1, 7, 40):
            x = activations(count)
            (y,) = session.run(None, {"x": x})
            assert np.array_equal(y, multiply(packed, x))
            expected = x.astype(np.float64) @ dense(matrix).T
            assert np.abs(y - expected).max() <= 0.02 * np.abs(expected).max()


@needs_headers
def test_any_leading_shape_and_none(tmp_path):
    matrix = random_matrix(ValueType.INT8, ROWS, COLUMNS)
    session = open_session(write_graph(tmp_path / "model.onnx", pack(matrix), precision="exact"))
    for shape in ((), (4,), (2, 3), (1, 2, 1, 3), (2, 0)):
        x = activations(*shape)
        (y,) = session.run(None, {"x": x})
        assert y.shape == (*shape, ROWS)
        assert np.allclose(y, x.astype(np.float64) @ dense(matrix).T, rtol=1e-4, atol=1e-4)


@needs_headers
def test_sessions_and_callers_at_the_same_time(tmp_path):
    paths = [
        write_graph(tmp_path / f"{seed}.onnx", pack(random_matrix(ValueType.INT8, ROWS, COLUMNS, seed=seed)))
        for seed in (0, 1)
    ]
    sessions = [open_session(path) for path in paths]
    inputs = [activations(3, seed=seed) for seed in range(16)]
    alone = [[session.run(None, {"x": x})[0] for x in inputs] for session in sessions]
    with ThreadPoolExecutor(4) as pool:
        together = [
            list(pool.map(lambda x, session=session: session.run(None, {"x": x})[0], inputs)) for session in sessions
        ]
    assert np.array_equal(alone, together)


@needs_headers
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 299}, "a packed weight is corrupt: a matrix has another shape"),
        ({"columns": 256}, "another shape"),
        ({"precision": "fast"}, "'fast', not auto or exact"),
        ({"format_version": 2}, "another version"),
        ({"constant": False}, "not an initializer"),
    ],
)
def test_a_node_that_lies_is_refused_with_its_name(tmp_path, changes, message):
    path = write_graph(tmp_path / "model.onnx", pack(random_matrix(ValueType.INT8, ROWS, COLUMNS)), **changes)
    with pytest.raises(Exception, match=message) as caught:
        open_session(path)
    assert "the_product" in str(caught.value)
    with pytest.raises(ArtefactCorrupt, match=message):
        open_graph(path)


@needs_headers
@pytest.mark.parametrize("place", ["header", "masks", "end"])
def test_damaged_bytes_are_refused_before_a_kernel_runs(tmp_path, place):
    packed = pack(random_matrix(ValueType.INT8, ROWS, COLUMNS))
    # At the end is the last stored value, or the gap behind it: no header shows it.
    packed[{"header": 8, "masks": read_header(packed).sections[2], "end": -65}[place]] ^= 1
    with pytest.raises(Exception, match="a packed weight is corrupt"):
        open_session(write_graph(tmp_path / "model.onnx", packed))


@needs_headers
def test_activations_of_another_width_are_refused(tmp_path):
    session = open_session(write_graph(tmp_path / "model.onnx", pack(random_matrix(ValueType.INT8, ROWS, COLUMNS))))
    with pytest.raises(Exception, match="do not end in 257"):
        session.run(None, {"x": activations(2)[:, :-1]})


def test_the_file_says_whether_it_needs_the_operator(tmp_path):
    path = write_graph(tmp_path / "model.onnx", pack(random_matrix(ValueType.INT8, ROWS, COLUMNS)))
    assert needs_operators(path)
    stock = helper.make_graph([helper.make_node("Relu", ["shearling"], ["y"])], DOMAIN, [], [])
    onnx.save(helper.make_model(stock, opset_imports=[helper.make_opsetid("", 18)], producer_name=DOMAIN), path)
    assert not needs_operators(path)
    later = helper.make_model(
        stock, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, DOMAIN_VERSION + 1)]
    )
    onnx.save(later, path)
    with pytest.raises(ModelUnsupported, match="version 2 of the operators"):
        needs_operators(path)
    path.write_bytes(path.read_bytes().partition(IMPORT)[0] + IMPORT)
    with pytest.raises(ModelUnsupported, match="version 0 of the operators"):
        needs_operators(path)
    path.write_bytes(b"")
    assert not needs_operators(path)
    path.unlink()
    with pytest.raises(ArtefactMissing):
        needs_operators(path)
