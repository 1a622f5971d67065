"""The text of an IR as a graph, and the layers of ours in it that become constants."""

from __future__ import annotations

import re

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from shearling.kernel.library import pack_matrix
from shearling.kernel.loading.dense_form import unpack
from shearling.kernel.loading.ir_text import FORMAT_VERSION, IrText, MalformedText
from shearling.kernel.loading.packed_operator import HEADER, HEADER_BYTES, MAGIC, find_operators
from shearling.kernel.openvino_extension import machine_operators
from shearling.kernel.packed_format import Encoding, ValueType, read_header
from tests.support.matrices import dense, random_matrix

ROWS, COLUMNS = 40, 96


@pytest.fixture(scope="module")
def core() -> ov.Core:
    return machine_operators().core


def read(core: ov.Core, text: IrText, weights: np.ndarray) -> ov.Model:
    return core.read_model(text.to_bytes(), ov.Tensor(weights, shared_memory=True))


def test_a_text_that_is_not_changed_is_the_same_model(core, tmp_path):
    x = op.parameter([-1, 8], np.float32, name="x")
    left, right = op.split(op.add(x, op.constant(np.arange(8, dtype=np.float32))), 1, 2).outputs()
    info = VariableInfo()
    info.data_shape, info.data_type, info.variable_id = ov.PartialShape([1, 4]), ov.Type.f32, "kept"
    kept = Variable(info)
    total = op.add(op.multiply(left, right), op.read_value(op.constant(np.zeros((1, 4), np.float32)), kept))
    model = ov.Model([op.result(total)], [op.assign(total, kept)], [x])
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    text, weights = (tmp_path / f"model.{suffix}" for suffix in ("xml", "bin"))
    again = read(core, IrText(text.read_bytes()), np.fromfile(weights, np.uint8))
    assert [node.get_type_name() for node in again.get_ordered_ops()] == [
        node.get_type_name() for node in core.read_model(text).get_ordered_ops()
    ]
    x = np.random.default_rng(0).standard_normal((1, 8), dtype=np.float32)
    found, expected = (core.compile_model(either, "CPU")(x)[0] for either in (again, text))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<net>",
        b"<net/>",
        b"<net><layers/></net>",
        b'<net><layers><layer id="a"/></layers><edges/></net>',
        b'<net><layers/><edges><edge from-layer="1" from-port="0" to-layer="2" to-port="0"/></edges></net>',
        b'<net><layers/><edges><edge from-layer="1"/></edges></net>',
        b'<!DOCTYPE net [<!ENTITY a "b">]><net><layers/><edges/></net>',
    ],
)
def test_what_is_no_ir_is_refused(content):
    with pytest.raises(MalformedText):
        IrText(content)


def test_a_name_of_two_layers_names_neither():
    text = IrText(
        b'<net><layers><layer id="0" name="a" type="Sqrt"/><layer id="1" name="a" type="Sqrt"/>'
        b'<layer id="2" name="b" type="Sqrt"/></layers><edges/></net>'
    )
    assert text.named("b", "Sqrt") == 2
    for name, kind in (("a", "Sqrt"), ("b", "Add"), ("c", "Sqrt")):
        with pytest.raises(MalformedText):
            text.named(name, kind)


@pytest.mark.parametrize("kind", ["float32", "int64", "int32", "uint8"])
def test_numbers_stand_in_the_text(core, kind):
    values = np.random.default_rng(0).integers(0, 200, (3, 1, 5)).astype(kind)
    text = IrText()
    text.add("Result", [text.numbers(values)], {}, version="opset1", outputs=0)
    nodes = read(core, text, np.zeros(1, np.uint8)).get_ops()
    (constant,) = (node for node in nodes if node.get_type_name() == "Constant")
    assert np.array_equal(constant.data, values)
    assert constant.data.dtype == values.dtype


@pytest.mark.parametrize(
    ("kind", "group_size"),
    [
        (ValueType.INT8, None),
        (ValueType.INT4, 32),
        (ValueType.INT4, 16),
        (ValueType.INT4, None),
        (ValueType.BF16, None),
    ],
)
@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("seed", [1, 2])  # 2: scales that bytes hold
def test_a_packed_matrix_is_unpacked_while_a_text_is_read(core, kind, group_size, encoding, seed):
    matrix = random_matrix(kind, ROWS, COLUMNS, group_size=group_size, seed=seed)
    packed = pack_matrix(matrix, encoding)
    text = unpacked_parts(packed.size, ("values",) if kind is ValueType.BF16 else ("values", "scales"))
    nodes = {node.get_friendly_name(): node for node in read(core, text, packed).get_ops()}
    parts = [nodes[name] for name in ("values", "scales") if name in nodes]
    assert parts[0].get_element_type().get_type_name() == {"INT8": "i8", "INT4": "i4", "BF16": "bf16"}[kind.name]
    weight = op.convert(parts[0], np.float32)
    if kind is not ValueType.BF16:
        assert parts[1].get_element_type() == ov.Type.f16
        weight = op.multiply(weight, op.convert(parts[1], np.float32))
    result = core.compile_model(ov.Model([op.result(weight)], []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({})
    found = next(iter(result.values())).reshape(ROWS, COLUMNS)
    assert np.allclose(found, dense(matrix), rtol=1e-6, atol=0)


def test_a_large_matrix_is_unpacked_by_all_threads(core):
    """In pieces, behind the last whole one of which an odd number of nibbles is left."""
    rows, columns = 2101, 2003
    matrix = random_matrix(ValueType.INT4, rows, columns)
    packed = pack_matrix(matrix)
    model = read(core, unpacked_parts(packed.size, ("values",)), packed)
    (values,) = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    numbers = ov.Model([op.result(op.convert(values, np.float32))], [])
    found = next(iter(core.compile_model(numbers, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({}).values()))
    assert np.array_equal(found.reshape(rows, columns), matrix.values)


@pytest.mark.parametrize("seed", [0, 1, 2])  # scales in float32, in float16, in bytes
def test_a_layer_of_int4_is_unpacked_whatever_its_scales_are(core, seed):
    matrix = random_matrix(ValueType.INT4, ROWS, COLUMNS, group_size=16, seed=seed)
    packed, text = pack_matrix(matrix), IrText()
    (x,) = text.add("Parameter", [], {"shape": f"?,{COLUMNS}", "element_type": "f32"}, version="opset1")
    constant = text.stored("u8", packed.shape, 0)
    sizes = {"rows": [ROWS], "columns": COLUMNS, "precision": "auto", "format_version": FORMAT_VERSION}
    outputs = text.add("SparseLinear", [x, constant], {"norm_epsilon": 0.0, "bias": False, "residual": False, **sizes})
    text.add("Result", outputs, {}, version="opset1", outputs=0)
    unpack(text, find_operators(text, packed))
    rows = np.random.default_rng(0).standard_normal((3, COLUMNS)).astype(np.float32)
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    found = core.compile_model(read(core, text, packed), "CPU", exact)(rows)[0]
    assert np.allclose(found, rows @ dense(matrix).T, rtol=1e-4, atol=1e-5)


def unpacked_parts(total: int, parts: tuple[str, ...], **changed: object) -> IrText:
    text = IrText()
    for part in parts:
        data = {"element_type": "u8", "shape": [total], "offset": 0, "size": total, "part": part}
        outputs = text.add("Const", [], {**data, "format_version": FORMAT_VERSION, **changed}, name=part)
        text.add("Result", outputs, {}, version="opset1", outputs=0)
    return text


@pytest.mark.parametrize(
    "changed",
    [
        {"part": "nothing"},
        {"format_version": 2},
        {"offset": 64},
        {"size": 64, "shape": [64]},
        {"size": 0, "shape": [0]},
        {"element_type": "i8"},
        {"offset": -64},
    ],
)
def test_a_layer_that_lies_is_refused(core, changed):
    packed = pack_matrix(random_matrix(ValueType.INT8, ROWS, COLUMNS))
    with pytest.raises(RuntimeError):
        read(core, unpacked_parts(packed.size, ("values",), **changed), packed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("content", "0g"),
        ("content", "000"),
        ("shape", "3"),
        ("shape", "-1"),
        ("element_type", "i4"),
        ("element_type", "x"),
    ],
)
def test_numbers_that_are_none_are_refused(core, name, value):
    text = IrText()
    text.add("Result", [text.numbers(np.zeros(2, np.uint8))], {}, version="opset1", outputs=0)
    content = re.sub(rb'%s="[^"]*"' % name.encode(), f'{name}="{value}"'.encode(), text.to_bytes())
    with pytest.raises(RuntimeError):
        core.read_model(content, ov.Tensor(np.zeros(1, np.uint8)))


@pytest.mark.parametrize("part", ["values", "scales"])
def test_no_damage_of_a_matrix_gets_through(core, part):
    """Flipped bits are refused, or change numbers alone: nothing is read outside, and no other shape comes of them."""
    packed = pack_matrix(random_matrix(ValueType.INT8, ROWS, COLUMNS))
    header = read_header(packed)
    ends = {"values": packed.size, "scales": header.sections[1]}[part]
    rng, refused = np.random.default_rng(0), 0
    for place in [*range(HEADER.size), *rng.integers(HEADER_BYTES, ends, 100)]:
        damaged = packed.copy()
        damaged[place] ^= 1 << rng.integers(8)
        try:
            model = read(core, unpacked_parts(damaged.size, (part,)), damaged)
        except RuntimeError:
            refused += 1
            continue
        assert list(model.outputs[0].shape) == {"values": [ROWS, COLUMNS], "scales": [ROWS, 1]}[part]
    assert refused >= HEADER.size - 8


def test_operators_that_cannot_be_read_are_refused():
    packed = pack_matrix(random_matrix(ValueType.INT8, ROWS, COLUMNS))
    data = {"rows": [ROWS], "columns": COLUMNS, "norm_epsilon": 0.0, "bias": False, "residual": False}

    def operators(weights: np.ndarray, size: int, **changed: object):
        text = IrText()
        (x,) = text.add("Parameter", [], {"shape": "?,?", "element_type": "f32"}, version="opset1")
        text.add("SparseLinear", [x, text.stored("u8", (size,), 0)], {**data, **changed})
        return find_operators(text, weights)

    (operator,) = operators(packed, packed.size)
    assert (operator.parts[0].rows, operator.parts[0].columns, operator.parts[0].size) == (ROWS, COLUMNS, packed.size)
    assert packed[: len(MAGIC)].tobytes() == MAGIC
    for weights, size, changed in (
        (packed, packed.size + 1, {}),
        (packed, packed.size - 64, {}),
        (packed[64:], packed.size - 64, {}),
        (packed, packed.size, {"rows": [ROWS, ROWS]}),
        (packed, packed.size, {"bias": True}),
        (packed, packed.size, {"columns": "many", "norm_epsilon": 1e-5}),
        (packed, packed.size, {"norm_epsilon": "much"}),
    ):
        with pytest.raises(MalformedText):
            operators(weights, size, **changed)
