"""The operators inside a real OpenVINO: against numpy, through save and read, with dynamic shapes, and what they
refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from shearling.kernel.library import multiply
from shearling.kernel.loading.packed_operator import NORMS
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.openvino_extension import core_for, node_factory
from shearling.kernel.packed_format import Encoding, ValueType, bundle, pack
from tests.support.matrices import dense, random_matrix

HIDDEN, INNER, ATTENTION, EPSILON = 48, 112, 64, 1e-5
COMMON = {"precision": "auto", "format_version": 1}
ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(np.minimum(-x, 700))),
    "relu": lambda x: np.maximum(x, 0),
    "gelu_tanh": lambda x: x / (1 + np.exp(np.minimum(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3), 700))),
    "gelu_erf": lambda x: x * 0.5 * (1 + np.vectorize(__import__("math").erf)(x / np.sqrt(2))),
}


def matrix(rows, columns, seed, value_type=ValueType.INT8):
    return random_matrix(value_type, rows, columns, seed=seed)


def norm(x, gamma):
    return gamma * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON)


def mlp(x, gate, up, down, activation):
    first = (
        ACTIVATIONS[activation](x @ dense(up).T)
        if gate is None
        else ACTIVATIONS[activation](x @ dense(gate).T) * (x @ dense(up).T)
    )
    return first @ dense(down).T


def run(kind, inputs, attributes, tensors, tmp_path, *, precision="f32", element=np.float32, threads=0):
    """Build, save, read again, compile and infer twice; 0 threads are as many as there are."""
    parameters = [op.parameter([-1, -1, tensor.shape[-1]], element) for tensor in tensors]
    weights = op.constant(inputs)
    nodes = [parameter.output(0) for parameter in parameters]
    # The weights come after the activation, or after the residual of a layer.
    nodes.insert(2 if kind == "SparseLayer" else 1, weights.output(0))
    node = node_factory().create(kind, nodes, {**attributes, **COMMON})
    model = ov.Model([op.result(output) for output in node.outputs()], parameters)
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    core = core_for(tmp_path / "model.xml")
    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(tmp_path / "model.xml"), "CPU", properties)
    for _ in range(2):
        results = compiled([tensor.astype(element) for tensor in tensors])
    return [np.array(results[index], np.float64) for index in range(len(node.outputs()))]


def tolerance(rows):
    """Of the largest result: activations of one or two rows have 16 bits, of more 8."""
    return 2e-3 if rows <= 2 else 3e-2


def close(found, expected, tolerance=2e-3):
    return np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-6)


def activations(width, *, rows=1, seed=0):
    return np.random.default_rng(seed).standard_normal((1, rows, width)).astype(np.float32)


@pytest.mark.parametrize("value_type", list(ValueType))
@pytest.mark.parametrize("rows", [1, 5])
def test_three_products_behind_one_norm(tmp_path, value_type, rows):
    matrices = [matrix(size, HIDDEN, seed, value_type) for seed, size in enumerate((48, 16, 17))]
    gamma, biases = activations(HIDDEN, seed=7)[0, 0], [activations(size, seed=size)[0, 0] for size in (48, 16, 17)]
    # A matrix with too few zeros is stored dense beside the others.
    packed = [pack(part, Encoding.DENSE if index == 1 else Encoding.BITMASK) for index, part in enumerate(matrices)]
    attributes = {"rows": [48, 16, 17], "columns": HIDDEN, "norm_epsilon": EPSILON, "bias": True, "residual": False}
    x = activations(HIDDEN, rows=rows)
    found = run("SparseLinear", bundle(packed, [gamma, *biases]), attributes, [x], tmp_path)
    for result, part, bias in zip(found, matrices, biases, strict=True):
        assert close(result, norm(x.astype(np.float64), gamma) @ dense(part).T + bias, tolerance(rows))


def test_matrices_of_several_types_share_one_node(tmp_path):
    kinds = (ValueType.INT8, ValueType.BF16, ValueType.INT4)
    # Wide enough that a panel of bf16 blocks is larger than the usual scratch memory.
    matrices = [matrix(16, 5000, seed, kind) for seed, kind in enumerate(kinds)]
    attributes = {"rows": [16] * 3, "columns": 5000, "norm_epsilon": 0.0, "bias": False, "residual": False}
    x = activations(5000, rows=6)
    found = run("SparseLinear", bundle([pack(part) for part in matrices]), attributes, [x], tmp_path)
    for result, part in zip(found, matrices, strict=True):
        assert close(result, x.astype(np.float64) @ dense(part).T, tolerance(6))


def test_a_product_with_a_residual(tmp_path):
    part, x, residual = (
        matrix(HIDDEN, ATTENTION, 0),
        activations(ATTENTION, rows=3),
        activations(HIDDEN, rows=3, seed=1),
    )
    attributes = {"rows": [HIDDEN], "columns": ATTENTION, "norm_epsilon": 0.0, "bias": False, "residual": True}
    (found,) = run("SparseLinear", bundle([pack(part)]), attributes, [x, residual], tmp_path)
    assert close(found, x.astype(np.float64) @ dense(part).T + residual, tolerance(3))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("gated", [True, False])
# More rows than go through both products together.
@pytest.mark.parametrize("rows", [2, 530])
def test_an_mlp(tmp_path, activation, gated, rows):
    mlp_agrees(tmp_path, activation, gated, rows)


@pytest.mark.parametrize("gated", [True, False])
def test_an_mlp_of_which_a_thread_takes_more_at_once_than_stays_near(tmp_path, gated):
    mlp_agrees(tmp_path, "silu", gated, 512, inner=4120, threads=1)


def mlp_agrees(tmp_path, activation, gated, rows, *, inner=INNER, threads=0):
    gate, up, down = matrix(inner, HIDDEN, 0), matrix(inner, HIDDEN, 1), matrix(HIDDEN, inner, 2)
    gamma, x = activations(HIDDEN, seed=7)[0, 0], activations(HIDDEN, rows=rows)
    packed = [pack(part) for part in ([gate] if gated else []) + [up, down]]
    attributes = {
        "columns": HIDDEN,
        "inner": inner,
        "activation": activation,
        "gated": gated,
        "norm_epsilon": EPSILON,
        "residual": True,
    }
    (found,) = run("SparseMLP", bundle(packed, [gamma]), attributes, [x], tmp_path, threads=threads)
    expected = x + mlp(norm(x.astype(np.float64), gamma), gate if gated else None, up, down, activation)
    assert close(found, expected, tolerance(rows))


@pytest.mark.parametrize("normed", [(False, False), (True, True), (False, True), (True, False)])
@pytest.mark.parametrize(("rows", "next_rows"), [(1, (48, 16, 16)), (20, (48, 16, 16)), (1, ()), (530, (48, 16, 16))])
def test_a_layer(tmp_path, rows, next_rows, normed):
    """With or without norms of what the projection and the MLP add."""
    first, gate, up, down = (
        matrix(HIDDEN, ATTENTION, 0),
        matrix(INNER, HIDDEN, 1),
        matrix(INNER, HIDDEN, 2),
        matrix(HIDDEN, INNER, 3),
    )
    following = [matrix(size, HIDDEN, 4 + index) for index, size in enumerate(next_rows)]
    present = dict(zip(NORMS, (normed[0], True, normed[1], bool(next_rows)), strict=True))
    gammas = {name: activations(HIDDEN, seed=7 + place)[0, 0] for place, name in enumerate(NORMS) if present[name]}
    x, residual = activations(ATTENTION, rows=rows), activations(HIDDEN, rows=rows, seed=1)
    attributes = {
        "rows": list(next_rows),
        "columns": ATTENTION,
        "hidden": HIDDEN,
        "inner": INNER,
        "activation": "silu",
        "gated": True,
    }
    attributes |= {"bias": False, **{name: EPSILON if present[name] else 0.0 for name in NORMS}}
    packed = [pack(part) for part in (first, gate, up, down, *following)]
    found = run("SparseLayer", bundle(packed, [*gammas.values()]), attributes, [x, residual], tmp_path)

    def normalized(name: str, values: np.ndarray) -> np.ndarray:
        return norm(values, gammas[name]) if present[name] else values

    middle = residual + normalized("projection_epsilon", x.astype(np.float64) @ dense(first).T)
    inner = mlp(normalized("norm_epsilon", middle), gate, up, down, "silu")
    y = middle + normalized("mlp_epsilon", inner)
    assert close(found[0], y, tolerance(rows))
    for result, part in zip(found[1:], following, strict=True):
        # Of the y that was found: the norm may make much of an error of a row that is small.
        assert close(result, normalized("next_epsilon", found[0]) @ dense(part).T, tolerance(rows))


def test_bf16_activations(tmp_path):
    part, x = matrix(32, HIDDEN, 0), activations(HIDDEN, rows=2)
    attributes = {"rows": [32], "columns": HIDDEN, "norm_epsilon": 0.0, "bias": False, "residual": False}
    (found,) = run("SparseLinear", bundle([pack(part)]), attributes, [x], tmp_path, element=np.float16)
    assert close(found, x.astype(np.float64) @ dense(part).T, 1e-2)
    (found,) = run("SparseLinear", bundle([pack(part)]), attributes, [x], tmp_path, precision="bf16")
    assert close(found, x.astype(np.float64) @ dense(part).T, 2e-2)


LINEAR = {"rows": [32], "columns": HIDDEN, "norm_epsilon": 0.0, "bias": False, "residual": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [31]}, "another shape"),
        ({"rows": []}, "residual needs one matrix"),
        ({"columns": 47}, "another shape|do not end"),
        ({"norm_epsilon": EPSILON}, "another size"),
        ({"residual": True}, "inputs"),
        ({"precision": "fast"}, "not auto or exact"),
        ({"format_version": 2}, "another version"),
    ],
)
def test_attributes_that_do_not_fit_are_refused_at_once(change, message):
    weights = op.constant(bundle([pack(matrix(32, HIDDEN, 0))]))
    x = op.parameter([1, -1, HIDDEN], np.float32)
    with pytest.raises(RuntimeError, match=message):
        node_factory().create("SparseLinear", [x.output(0), weights.output(0)], {**LINEAR, **COMMON, **change})


@pytest.mark.parametrize("value_type", list(ValueType))
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_zeros_that_are_put_back_change_no_result(tmp_path, value_type, rows):
    """Of matrices with and without zeros in one node; the vectors lie behind them."""
    group = None if value_type is ValueType.BF16 else 16
    matrices = [random_matrix(value_type, size, HIDDEN, group_size=group, seed=size) for size in (48, 16, 17)]
    packed = [pack(part, Encoding.DENSE if index == 1 else Encoding.BITMASK) for index, part in enumerate(matrices)]
    weights = bundle(packed, [activations(size, seed=size)[0, 0] for size in (HIDDEN, 48, 16, 17)])
    attributes = {"rows": [48, 16, 17], "columns": HIDDEN, "norm_epsilon": EPSILON, "bias": True, "residual": False}
    x = activations(HIDDEN, rows=rows)
    kept, expanded = (
        run("SparseLinear", weights, {**attributes, "expanded": flag}, [x], tmp_path) for flag in (False, True)
    )
    for one, other in zip(kept, expanded, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_matrices_with_and_without_two_of_four_columns_in_one_node(tmp_path, rows):
    """What kernels hold in pairs lies beside what they hold as it is packed; the vectors lie behind them."""
    kinds = (ValueType.INT8, ValueType.INT4, ValueType.INT8, ValueType.BF16, ValueType.INT4)
    sizes = [48, 16, 17, 32, 33]
    matrices = [
        random_matrix(
            kind,
            size,
            96,
            keep=0.9,
            two_of_four=place != 2,
            seed=place,
            group_size=32 if kind is ValueType.INT4 else None,
        )
        for place, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
    ]
    packed = [pack(part, Encoding.DENSE if place == 2 else Encoding.BITMASK) for place, part in enumerate(matrices)]
    biases = [activations(size, seed=size)[0, 0] for size in sizes]
    attributes = {"rows": sizes, "columns": 96, "norm_epsilon": 0.0, "bias": True, "residual": False}
    x = activations(96, rows=rows)
    found = run("SparseLinear", bundle(packed, biases), attributes, [x], tmp_path)
    for result, part, bias in zip(found, packed, biases, strict=True):
        assert np.array_equal(result[0], multiply(part, x[0], bias=bias))


FORMS = [("packed", False), ("packed", True), ("expanded", False)]
"""How weights are held; whether no row has more than two in four columns, which is a form of its own on AVX2."""


@pytest.mark.parametrize(("form", "two_of_four"), FORMS)
def test_weights_that_differ_in_one_byte_are_not_shared(tmp_path, form, two_of_four):
    """Models in one process share what is equal, to the last byte."""
    part = random_matrix(ValueType.INT8, 256, 512, keep=0.9, two_of_four=two_of_four, seed=3)
    x = activations(512)
    shared = []
    for row in (None, None, 2, 200):
        values = part.values.copy()
        if row is not None:
            column = np.flatnonzero(np.abs(values[row].astype(int)) > 2)[-1]
            values[row, column] ^= 1
        weights = pack(dataclasses.replace(part, values=values), Encoding.BITMASK)
        parameter = op.parameter([-1, -1, 512], np.float32)
        attributes = {"rows": [256], "columns": 512, "norm_epsilon": 0.0, "bias": False, "residual": False, **COMMON}
        attributes["expanded"] = form == "expanded"
        node = node_factory().create("SparseLinear", [parameter.output(0), op.constant(weights).output(0)], attributes)
        model = ov.Model([op.result(node.output(0))], [parameter])
        shared.append(openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))
    first, again, *others = (np.array(compiled([x])[0]) for compiled in shared)
    assert np.array_equal(first, again)
    for other in others:
        assert (other != first).sum() == 1  # of one row


@pytest.mark.parametrize(("form", "two_of_four"), FORMS)
def test_equal_matrices_keep_their_own_norms_and_biases(tmp_path, form, two_of_four):
    """Beside each other in one process, where what is equal is shared."""
    packed, x = (
        pack(random_matrix(ValueType.INT8, 256, 512, keep=0.9, two_of_four=two_of_four, seed=3)),
        activations(512),
    )
    attributes = {"rows": [256], "columns": 512, "norm_epsilon": EPSILON, "bias": True, "residual": False, **COMMON}
    models = []
    for gamma, bias in ((1.0, 0.0), (1.5, 0.0), (1.0, -0.25)):
        gammas, biases = np.ones(512, np.float32), np.zeros(256, np.float32)
        gammas[7], biases[9] = gamma, bias
        weights = bundle([packed], [gammas, biases])
        parameter = op.parameter([-1, -1, 512], np.float32)
        node = node_factory().create(
            "SparseLinear",
            [parameter.output(0), op.constant(weights).output(0)],
            {**attributes, "expanded": form == "expanded"},
        )
        model = ov.Model([op.result(node.output(0))], [parameter])
        models.append(openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))
    plain, scaled, moved = (np.array(compiled([x])[0]) for compiled in models)
    assert (scaled != plain).mean() > 0.3
    plain[..., 9] -= 0.25
    assert np.array_equal(moved, plain)


def test_matrices_that_differ_in_the_size_of_their_groups_are_not_shared():
    """All other bytes of them are equal."""
    part = random_matrix(ValueType.INT8, 256, 96, keep=0.9, two_of_four=True, group_size=64, seed=1)
    answers, x = [], activations(96)
    models = []
    for group in (64, 48):
        packed = pack(dataclasses.replace(part, group_size=group))
        parameter = op.parameter([-1, -1, 96], np.float32)
        attributes = {"rows": [256], "columns": 96, "norm_epsilon": 0.0, "bias": False, "residual": False, **COMMON}
        node = node_factory().create("SparseLinear", [parameter.output(0), op.constant(packed).output(0)], attributes)
        model = ov.Model([op.result(node.output(0))], [parameter])
        models.append(openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))
        answers.append(multiply(packed, x[0]))
    for model, answer in zip(models, answers, strict=True):
        assert np.array_equal(np.array(model([x])[0])[0], answer)
    assert not np.array_equal(*answers)


def test_a_lying_constant_is_refused_before_a_kernel_runs(tmp_path):
    packed = pack(matrix(32, HIDDEN, 0))
    packed[-65] ^= 1  # the last stored value or the gap behind it: no header shows it
    damaged = pack(matrix(32, HIDDEN, 0))
    damaged[damaged.size // 4] ^= 1
    for lie in (packed, damaged):
        with pytest.raises(RuntimeError, match="a packed weight is corrupt"):
            run("SparseLinear", bundle([lie]), LINEAR, [activations(HIDDEN)], tmp_path)


HEAD = {"rows": 50, "columns": 96}


def head_model(part, *, encoding=Encoding.DENSE, tokens=np.int64):
    """tokens [batch, length] -> rows of a matrix, and the products of them with the same matrix."""
    ids, weights = op.parameter([-1, -1], tokens), op.constant(bundle([pack(part, encoding)]))
    rows = node_factory().create("SparseEmbedding", [ids.output(0), weights.output(0)], {**HEAD, **COMMON})
    products = node_factory().create("SparseHead", [rows.output(0), weights.output(0)], {**HEAD, **COMMON})
    return ov.Model([op.result(rows.output(0)), op.result(products.output(0))], [ids])


@pytest.mark.parametrize("value_type", list(ValueType))
@pytest.mark.parametrize(
    ("encoding", "two_of_four"), [(Encoding.DENSE, False), (Encoding.BITMASK, False), (Encoding.BITMASK, True)]
)
@pytest.mark.parametrize("tokens", [np.int32, np.int64])
def test_an_embedding_and_a_head_of_the_same_matrix(tmp_path, value_type, encoding, two_of_four, tokens):
    group = 16 if value_type is ValueType.INT4 else None
    part = random_matrix(value_type, *HEAD.values(), keep=0.8, two_of_four=two_of_four, group_size=group, seed=3)
    ov.save_model(head_model(part, encoding=encoding, tokens=tokens), tmp_path / "model.xml", compress_to_fp16=False)
    core = core_for(tmp_path / "model.xml")
    compiled = core.compile_model(core.read_model(tmp_path / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # From the end where they are negative, as in a Gather.
    for ids in (np.array([[0, 49, 17, 1], [16, 15, 2, 33]]), np.array([[5]]), np.array([[-1, -50]])):
        rows, products = (np.array(result, np.float64) for result in compiled([ids.astype(tokens)]).values())
        assert np.array_equal(rows, dense(part)[ids].astype(np.float32))
        assert close(products, dense(part)[ids] @ dense(part).T, tolerance(ids.size))


def test_a_head_is_a_matmul_for_who_looks_for_one():
    # OpenVINO GenAI cuts all but the sampled tokens off before the last one of a graph.
    head = head_model(matrix(*HEAD.values(), 0)).get_results()[1].input_value(0).get_node()
    assert (head.get_type_name(), head.get_type_info().parent.name) == ("SparseHead", "MatMul")


@pytest.mark.parametrize("token", [50, -51])
def test_a_token_outside_of_the_vocabulary_is_refused(token):
    compiled = openvino_core().compile_model(head_model(matrix(*HEAD.values(), 0)), "CPU")
    with pytest.raises(RuntimeError, match=f"token {token} is not in a vocabulary of 50"):
        compiled([np.array([[token]])])


def test_an_embedding_reads_nothing_of_a_lying_constant():
    lie = pack(random_matrix(ValueType.INT8, *HEAD.values(), seed=1))
    lie[128:130] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)  # the first scale
    ids = op.parameter([-1, -1], np.int64)
    rows = node_factory().create(
        "SparseEmbedding", [ids.output(0), op.constant(bundle([lie])).output(0)], {**HEAD, **COMMON}
    )
    model = ov.Model([op.result(rows.output(0))], [ids])
    with pytest.raises(RuntimeError, match="a packed weight is corrupt"):
        openvino_core().compile_model(model, "CPU")
