"""Projections that a model computes in one product and cuts apart: packed as products of their own, with the same
numbers, and counted as the one weight that they are."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13 as op
from transformers import GlmConfig, GlmForCausalLM, Phi3Config, Phi3ForCausalLM

from export.formats.openvino import FLOAT32_CPU, MODEL_XML, openvino_logits, write_openvino
from export.packing.joined_products import find_joined, join_parts, part_of, split_joined
from export.packing.linear_graph import find_products
from export.packing.stock_ir import read_packed
from export.packing.stored_weight import decompressed, read_matrix
from shearling.errors import ArtefactCorrupt
from shearling.kernel.bundle import OPERATORS
from shearling.kernel.openvino_extension import core_for, load_packed
from shearling.kernel.packed_format import Matrix, ValueType
from tests.support.exported_files import count_zeros, stored_as
from tests.support.packed_decoders import SHAPE, seeded_decoder
from tests.support.packing_cases import BLOCKS, SHARES
from tests.support.tiny_models import prune_at_random, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it
ROWS, COLUMNS = 48, 32


@pytest.mark.parametrize("weights", ["int8", "bf16", "int4"])
@pytest.mark.parametrize("family", ["phi3", "glm"])
def test_a_model_is_packed_whole_and_says_what_it_said(tmp_path, family, weights):
    model = seeded_decoder(
        *{
            "phi3": (Phi3ForCausalLM, Phi3Config(**SHAPE)),
            "glm": (GlmForCausalLM, GlmConfig(**SHAPE, head_dim=16)),
        }[family]
    )
    masks = prune_at_random(model, share=SHARES[weights])
    stock, sparse = tmp_path / "stock" / "openvino", tmp_path / "sparse" / "openvino"
    write_openvino(model, tiny_tokenizer(), stock, stored_as(weights), sparsity={})
    packing = write_openvino(model, tiny_tokenizer(), sparse, stored_as(weights, kernel="sparse"), sparsity={})
    assert packing.kept == {}
    assert packing.operators["SparseLayer"] == SHAPE["num_hidden_layers"]
    assert {layer.path.partition(".rows_")[0] for layer in packing.layers} >= set(masks)
    (check,) = count_zeros(tmp_path / "sparse", masks).values()
    assert check.zeros == check.pruned > 0
    assert check == count_zeros(tmp_path / "stock", masks)["openvino"]
    whole = {
        product.constant.get_friendly_name(): read_matrix(product)
        for product in find_products(openvino.Core().read_model(stock / MODEL_XML))
    }
    xml = sparse / MODEL_XML
    packed: dict[str, Matrix] = {}
    for node in core_for(xml).read_model(xml).get_ops():
        packed |= read_packed(node) if node.get_type_name() in OPERATORS else {}
    assert packed.keys() == whole.keys()
    for name, matrix in packed.items():
        assert np.array_equal(matrix.values, whole[name].values)
        assert (matrix.scales is None) is (weights == "bf16")
        assert matrix.scales is None or np.array_equal(matrix.scales, whole[name].scales)
    assert load_packed(xml, properties={"PACKED": "always"}).attention is None
    pairs = zip(*(openvino_logits(place, BLOCKS, config=FLOAT32_CPU) for place in (stock, sparse)), strict=True)
    for left, right in pairs:
        assert np.std(left - right) <= 0.03 * np.std(left)


def test_what_is_not_packed_stays_in_one(tmp_path):
    model = seeded_decoder(Phi3ForCausalLM, Phi3Config(**SHAPE))
    masks = prune_at_random(model, share=0.05)
    packing = write_openvino(
        model, tiny_tokenizer(), tmp_path / "openvino", stored_as("bf16", kernel="sparse"), sparsity={}
    )
    assert packing.layers == ()
    assert set(packing.kept) >= set(masks)
    (check,) = count_zeros(tmp_path, masks).values()
    assert check.zeros == check.pruned > 0


def test_parts_that_do_not_follow_each_other_are_refused():
    names = [part_of("a.weight", *rows) for rows in ((0, 4), (4, 6))]
    assert names == ["a.rows_0_4.weight", "a.rows_4_6.weight"]
    parts = [
        Matrix(np.zeros((count, 8), np.int8), ValueType.INT8, np.ones((count, 1), np.float16), 8) for count in (4, 2)
    ]
    (whole,) = join_parts(dict(zip(reversed(names), reversed(parts), strict=True))).values()
    assert whole.values.shape == (6, 8)
    assert whole.scales.shape == (6, 1)
    for wrong in (names[1:], ["a.rows_0_4.weight", "a.rows_3_5.weight"]):
        with pytest.raises(ArtefactCorrupt, match="do not follow each other"):
            join_parts(dict(zip(wrong, parts[-len(wrong) :], strict=True)))
    alone = {"b.rows_of.weight": parts[0], "b.rows_1_2": parts[1]}
    assert join_parts(alone).keys() == alone.keys()


def _graph(cut) -> openvino.Model:
    """A product of 48 rows, and what is made of it."""
    rng = np.random.default_rng(0)
    values = rng.integers(-127, 128, (ROWS, COLUMNS)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, (ROWS, 1)).astype(np.float16)
    weight = decompressed("self.joined.weight", Matrix(values, ValueType.INT8, scales, COLUMNS))
    x = op.parameter([-1, -1, COLUMNS], np.float32)
    product = op.matmul(x, weight, False, True)
    return openvino.Model([op.result(op.relu(output)) for output in cut(product)], [x], "joined")


def _slice(product, first, last, step=1, axis=2):
    return op.slice(product, np.array([first]), np.array([last]), np.array([step]), np.array([axis])).output(0)


def _sized_at_run_time(product):
    """As the exporter writes `chunk`: sizes that a shape is divided into."""
    whole = op.gather(op.shape_of(product), np.array([-1]), np.int64(0))
    return op.variadic_split(product, np.int64(-1), op.concat([op.divide(whole, np.array([3])), np.array([-1])], 0))


def _split_beside(product):
    other = _sized_at_run_time(product)
    sizes = other.input_value(2)
    return [*other.outputs(), *op.variadic_split(op.relu(product), np.int64(-1), sizes).outputs()]


CUTS = {
    "slices": (lambda y: [_slice(y, 0, 16), _slice(y, 16, 20), _slice(y, 20, 2**62)], ["0_16", "16_20", "20_48"]),
    "slices in another order": (lambda y: [_slice(y, 30, 48), _slice(y, 0, 30)], ["0_30", "30_48"]),
    "a split": (lambda y: op.variadic_split(y, np.int64(2), np.array([8, 40])).outputs(), ["0_8", "8_48"]),
    "a split by its shape": (lambda y: _sized_at_run_time(y).outputs(), ["0_16", "16_48"]),
    "a slice of all": (lambda y: [_slice(y, 0, 48)], None),
    "parts that overlap": (lambda y: [_slice(y, 0, 30), _slice(y, 20, 48)], None),
    "a part that nobody reads": (lambda y: [_slice(y, 0, 16), _slice(y, 32, 48)], None),
    "every second row": (lambda y: [_slice(y, 0, 48, 2), _slice(y, 1, 48, 2)], None),
    "another axis": (lambda y: [_slice(y, 0, 1, axis=1), _slice(y, 1, 48, axis=1)], None),
    "another axis, too": (lambda y: [_slice(y, 0, 16), _slice(y, 16, 48), _slice(y, 1, 2, axis=1)], None),
    "a split of something else by its shape": (lambda y: _split_beside(y), None),
    "the whole, too": (lambda y: [_slice(y, 0, 16), _slice(y, 16, 48), y.output(0)], None),
    "its shape, too": (lambda y: [_slice(y, 0, 16), _slice(y, 16, 48), op.shape_of(y).output(0)], None),
}


@pytest.mark.parametrize("case", CUTS)
def test_what_is_cut_apart_and_what_stays(case):
    cut, parts = CUTS[case]
    model, again = _graph(cut), _graph(cut)
    joined = find_joined(model)
    assert len(joined) == (0 if parts is None else 1)
    split_joined(joined)
    model.validate_nodes_and_infer_types()
    paths = [product.path for product in find_products(model)]
    assert sorted(paths) == (["joined"] if parts is None else sorted(f"joined.rows_{part}" for part in parts))
    x = np.random.default_rng(1).standard_normal((2, 3, COLUMNS), np.float32)
    answers = []
    for one in (model, again):
        request = openvino.Core().compile_model(one, "CPU", FLOAT32_CPU).create_infer_request()
        request.infer([x])
        answers.append([request.get_output_tensor(port).data.copy() for port in range(len(one.outputs))])
    for left, right in zip(*answers, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)


def test_long_rope_is_exported_as_it_computes(tmp_path):
    """On texts that fit the original context, and on longer ones, whose angles are others."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * number for number in range(8)],
        "long_factor": [2.0 + 0.1 * number for number in range(8)],
        "original_max_position_embeddings": 42,
        "factor": 48.7,
    }
    model = seeded_decoder(Phi3ForCausalLM, Phi3Config(**SHAPE, rope_parameters=rope))
    blocks = [np.random.default_rng(length).integers(SHAPE["vocab_size"], size=length) for length in (30, 60)]
    expected = [model(torch.from_numpy(block)[None]).logits.detach().numpy()[0] for block in blocks]
    write_openvino(model, tiny_tokenizer(), tmp_path, stored_as("fp32"), sparsity={})
    for found, logits in zip(openvino_logits(tmp_path, blocks, config=FLOAT32_CPU), expected, strict=True):
        assert np.abs(found - logits).max() < 1e-4 * np.abs(logits).max()
