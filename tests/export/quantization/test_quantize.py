"""int4 on calibration text: closer to the model than rounding without data, and the same integers in every file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from export.formats.onnx import onnx_logits, write_onnx
from export.formats.openvino import FLOAT32_CPU, MODEL_XML, openvino_logits, write_openvino
from export.packing.linear_graph import find_products
from export.packing.packed_onnx import _find_products
from export.packing.stored_weight import read_matrix
from export.quantization import quantize as quantize_module
from export.quantization.quantize import Quantized, quantize
from export.quantization.settings import PlannedQuantization
from export.quantization.text import CalibrationText
from shearling.errors import UsageError
from shearling.kernel.openvino_extension import core_for
from shearling.kernel.packed_format import Matrix, ValueType
from shearling.model.layers import find_layers
from shearling.quantization.layerwise import round_layers
from tests.support.exported_files import stored_as
from tests.support.packing_cases import BLOCKS
from tests.support.rounded_models import divergence, rounded
from tests.support.tiny_models import CORPUS, bert, tiny_tokenizer, wide_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> CalibrationText:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(CORPUS * 40))
    return CalibrationText((str(path),), None)


def plan(
    text: CalibrationText,
    *,
    group: int = 32,
    narrower: bool = False,
    tuning: int = 0,
    all_layers: bool = False,
    ratio: float = 1.0,
) -> PlannedQuantization:
    preset = "best" if tuning else "balanced"
    return PlannedQuantization(
        preset, text, group, narrower, samples=16, tuning_steps=tuning, all_layers=all_layers, ratio=ratio
    )


def nearest(model: PreTrainedModel, group: int, *, all_layers: bool = False) -> PreTrainedModel:
    """Every weight by itself, the largest of a group at the end of the grid."""
    changed = copy.deepcopy(model)
    vocabulary = {changed.get_input_embeddings(), changed.get_output_embeddings()} if all_layers else set()
    with torch.no_grad():
        for linear in (*find_layers(changed).linears().values(), *vocabulary):
            groups = linear.weight.reshape(len(linear.weight), -1, group)
            scale = groups.abs().amax(dim=-1, keepdim=True) / 7
            linear.weight.copy_(((groups / scale).round() * scale).nan_to_num().reshape(linear.weight.shape))
    return changed


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return wide_model()


@pytest.fixture(scope="module")
def balanced(model, text) -> Quantized:
    return quantize(model, tiny_tokenizer(), plan(text), classifier=False)


@pytest.fixture(scope="module")
def files(model, balanced, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    for kernel in ("stock", "sparse"):
        storage = stored_as("int4", kernel=kernel)
        write_openvino(
            model,
            tiny_tokenizer(),
            directory / kernel / "openvino",
            storage,
            sparsity={},
            integers=balanced.matrices,
        )
    write_onnx(model, tiny_tokenizer(), directory / "stock" / "onnx", stored_as("int4"), integers=balanced.matrices)
    return directory


def test_it_is_closer_to_the_model_than_rounding_without_data(model, balanced, text) -> None:
    tuned = quantize(model, tiny_tokenizer(), plan(text, tuning=12), classifier=False)
    without, rounded_only, best = (
        divergence(model, other)
        for other in (nearest(model, 32), rounded(model, balanced.matrices), rounded(model, tuned.matrices))
    )
    assert rounded_only < 0.8 * without
    assert best < without
    assert len(tuned.distances) == 12
    assert np.mean(tuned.distances[-3:]) < np.mean(tuned.distances[:3])
    # The integers are those of the rounding: the scales alone were tuned.
    for path, matrix in balanced.matrices.items():
        assert np.array_equal(matrix.values, tuned.matrices[path].values)
        assert not np.array_equal(matrix.scales, tuned.matrices[path].scales)


def test_the_model_is_left_as_it_was_and_every_zero_is_kept(model, balanced) -> None:
    assert divergence(model, wide_model()) == 0
    linears = find_layers(model).linears()
    assert balanced.matrices.keys() == linears.keys()
    for path, linear in linears.items():
        assert not balanced.matrices[path].values[(linear.weight == 0).numpy()].any()


def test_files_hold_these_integers_and_scales(balanced, files) -> None:
    import onnx_ir

    ir = openvino.Core().read_model(files / "stock" / "openvino" / MODEL_XML)
    graph = onnx_ir.load(files / "stock" / "onnx" / "model.onnx").graph
    in_openvino = {item.path: read_matrix(item) for item in find_products(ir) if item.storage == "int4"}
    in_onnx = {item.path: item.matrix for item in _find_products(graph)}
    for found in (in_openvino, in_onnx):
        assert found.keys() == balanced.matrices.keys()
        for path, matrix in balanced.matrices.items():
            assert np.array_equal(found[path].values, matrix.values)
            assert np.array_equal(found[path].scales, matrix.scales)
            assert found[path].group_size == matrix.group_size


def test_groups_of_128_are_rounded_and_written(text, tmp_path) -> None:
    """Several in a row, and one that is a whole row."""
    import onnx_ir

    model = wide_model(hidden=128, inner=256)
    made = quantize(model, tiny_tokenizer(), plan(text, group=128), classifier=False).matrices
    assert {(matrix.group_size, matrix.scales.shape[1]) for matrix in made.values()} == {(128, 1), (128, 2)}
    assert divergence(model, rounded(model, made)) < 0.8 * divergence(model, nearest(model, 128))
    blocks = [np.asarray(block) for block in BLOCKS]
    with torch.no_grad():
        changed = rounded(model, made)
        expected = [changed(input_ids=torch.tensor(block)[None]).logits[0].numpy() for block in blocks]
    spread = max(float(np.ptp(block)) for block in expected)
    for kernel in ("stock", "sparse"):
        storage = stored_as("int4", kernel=kernel)
        write_openvino(model, tiny_tokenizer(), tmp_path / kernel, storage, sparsity={}, integers=made)
    write_onnx(model, tiny_tokenizer(), tmp_path / "onnx", stored_as("int4"), integers=made)
    ir = openvino.Core().read_model(tmp_path / "stock" / MODEL_XML)
    graph = onnx_ir.load(tmp_path / "onnx" / "model.onnx").graph
    for stored in (
        {item.path: read_matrix(item) for item in find_products(ir)},
        {item.path: item.matrix for item in _find_products(graph)},
    ):
        for path, matrix in made.items():
            assert stored[path].group_size == 128
            assert np.array_equal(stored[path].values, matrix.values)
            assert np.array_equal(stored[path].scales, matrix.scales)
    # Up to the embeddings and the head in int8, and activations in int8.
    for logits in (
        openvino_logits(tmp_path / "stock", blocks, config=FLOAT32_CPU),
        openvino_logits(tmp_path / "sparse", blocks, config=FLOAT32_CPU),
        onnx_logits(tmp_path / "onnx", blocks),
    ):
        assert max(float(np.abs(a - b).max()) for a, b in zip(expected, logits, strict=True)) < 0.05 * spread


def test_runtimes_compute_what_the_integers_say(model, balanced, files) -> None:
    """Up to the embeddings and the head, which OpenVINO has in int8, and activations in int8 in ONNX Runtime."""
    blocks = [np.asarray(block) for block in BLOCKS]
    with torch.no_grad():
        expected = [
            rounded(model, balanced.matrices)(input_ids=torch.tensor(block)[None]).logits[0].numpy() for block in blocks
        ]
    spread = max(float(np.ptp(block)) for block in expected)
    for found, limit in (
        (openvino_logits(files / "stock" / "openvino", blocks, config=FLOAT32_CPU), 0.02),
        (onnx_logits(files / "stock" / "onnx", blocks), 0.05),
    ):
        assert max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)) < limit * spread


def test_packed_integers_are_the_same(balanced, files) -> None:
    from export.packing.stock_ir import read_packed
    from shearling.kernel.bundle import OPERATORS

    path = files / "sparse" / "openvino" / MODEL_XML
    packed: dict[str, Matrix] = {}
    for node in core_for(path).read_model(path).get_ops():
        if node.get_type_name() in OPERATORS:
            packed |= read_packed(node)
    found = {name.removeprefix("self.").removesuffix(".weight"): matrix for name, matrix in packed.items()}
    for path_of_module, matrix in balanced.matrices.items():
        assert np.array_equal(found[path_of_module].values, matrix.values)
        assert np.array_equal(found[path_of_module].scales, matrix.scales)


def test_a_group_that_does_not_divide_is_refused_or_made_smaller(text) -> None:
    model = wide_model(inner=80)
    with pytest.raises(UsageError, match="a group of 32 does not divide the 80 inputs") as raised:
        quantize(model, tiny_tokenizer(), plan(text), classifier=False)
    assert raised.value.where == "--group-size"
    found = quantize(model, tiny_tokenizer(), plan(text, narrower=True), classifier=False).matrices
    assert {matrix.group_size for path, matrix in found.items() if "down_proj" in path} == {16}
    assert {matrix.group_size for path, matrix in found.items() if "down_proj" not in path} == {32}


def test_widths_that_no_group_divides_are_left_for_int8(text) -> None:
    model = wide_model(inner=72)
    found = quantize(model, tiny_tokenizer(), plan(text, narrower=True), classifier=False).matrices
    assert found
    assert not any("down_proj" in path for path in found)


def test_a_model_without_such_widths_is_refused(text) -> None:
    with pytest.raises(UsageError, match="no group of 16 columns or more divides") as raised:
        quantize(wide_model(hidden=40, inner=72), tiny_tokenizer(), plan(text, narrower=True), classifier=False)
    assert "int8" in raised.value.remedy


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_rounded_too_where_all_layers_are(tied, text, tmp_path) -> None:
    """As one matrix where they are one, in every file, and each runtime computes what the integers say."""
    model = wide_model(tied=tied)
    found = quantize(model, tiny_tokenizer(), plan(text, all_layers=True, tuning=6), classifier=False).matrices
    embedding, head = found["model.embed_tokens"], found["lm_head"]
    assert (embedding is head) == tied
    assert found.keys() == {*find_layers(model).linears(), "model.embed_tokens", "lm_head"}
    assert divergence(model, rounded(model, found)) < 0.8 * divergence(model, nearest(model, 32, all_layers=True))
    write_openvino(model, tiny_tokenizer(), tmp_path / "ov", stored_as("int4"), sparsity={}, integers=found)
    write_onnx(model, tiny_tokenizer(), tmp_path / "onnx", stored_as("int4"), integers=found)
    packed = stored_as("int4", kernel="sparse")
    report = write_openvino(model, tiny_tokenizer(), tmp_path / "packed", packed, sparsity={}, integers=found)
    assert report is not None
    assert report.operators["SparseHead"] == 1
    assert report.operators.get("SparseEmbedding", 0) == int(tied)
    for directory in ("ov", "packed"):
        stored = (tmp_path / directory / MODEL_XML).with_suffix(".bin").stat().st_size
        assert stored < sum(item.numel() for item in model.parameters())
    blocks = [np.asarray(block) for block in BLOCKS]
    with torch.no_grad():
        expected = [rounded(model, found)(input_ids=torch.tensor(block)[None]).logits[0].numpy() for block in blocks]
    spread = max(float(np.ptp(block)) for block in expected)
    for logits, limit in (
        (openvino_logits(tmp_path / "ov", blocks, config=FLOAT32_CPU), 1e-5),
        (openvino_logits(tmp_path / "packed", blocks, config=FLOAT32_CPU), 0.05),
        (onnx_logits(tmp_path / "onnx", blocks), 0.05),
    ):
        assert max(float(np.abs(a - b).max()) for a, b in zip(expected, logits, strict=True)) < limit * spread


def test_an_error_is_that_of_integers_which_are_in_the_file(model, text, monkeypatch) -> None:
    """The matrices that four bits hurt most have eight, and their error in four is no file's."""
    made = []

    def spied(*arguments, **options):
        made.append(round_layers(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(quantize_module, "round_layers", spied)
    mixed = quantize(model, tiny_tokenizer(), plan(text, ratio=0.6), classifier=False)
    errors = made[0].errors
    kept = [errors[path] for path, matrix in mixed.matrices.items() if matrix.value_type is ValueType.INT4]
    assert 0 < len(kept) < len(errors)
    assert mixed.layer_error == pytest.approx(sum(kept) / len(kept))
    assert mixed.layer_error < 0.99 * sum(errors.values()) / len(errors)


def test_a_share_of_the_weights_has_eight_bits_in_every_file(model, balanced, text, tmp_path) -> None:
    mixed = quantize(model, tiny_tokenizer(), plan(text, ratio=0.6), classifier=False)
    sizes = {path: matrix.values.size for path, matrix in mixed.matrices.items()}
    spared = {path for path, matrix in mixed.matrices.items() if matrix.value_type is ValueType.INT8}
    assert 0.2 < sum(sizes[path] for path in spared) / sum(sizes.values()) <= 0.4
    assert mixed.in_four_bits == len(sizes) - len(spared)
    for path, matrix in mixed.matrices.items():
        if path not in spared:
            assert np.array_equal(matrix.values, balanced.matrices[path].values)
        assert not matrix.values[(model.get_submodule(path).weight == 0).numpy()].any()
    assert divergence(model, rounded(model, mixed.matrices)) < divergence(model, rounded(model, balanced.matrices))
    blocks = [np.asarray(block) for block in BLOCKS]
    with torch.no_grad():
        changed = rounded(model, mixed.matrices)
        expected = [changed(input_ids=torch.tensor(block)[None]).logits[0].numpy() for block in blocks]
    spread = max(float(np.ptp(block)) for block in expected)
    for kernel in ("stock", "sparse"):
        storage = stored_as("int4", kernel=kernel)
        write_openvino(model, tiny_tokenizer(), tmp_path / kernel, storage, sparsity={}, integers=mixed.matrices)
    write_onnx(model, tiny_tokenizer(), tmp_path / "onnx", stored_as("int4"), integers=mixed.matrices)
    for logits, limit in (
        (openvino_logits(tmp_path / "stock", blocks, config=FLOAT32_CPU), 0.02),
        (openvino_logits(tmp_path / "sparse", blocks, config=FLOAT32_CPU), 0.05),
        (onnx_logits(tmp_path / "onnx", blocks), 0.05),
    ):
        assert max(float(np.abs(a - b).max()) for a, b in zip(expected, logits, strict=True)) < limit * spread


def test_an_encoder_is_rounded_too(text) -> None:
    model = bert()
    found = quantize(model, tiny_tokenizer(), plan(text, narrower=True, tuning=2), classifier=True)
    assert all(matrix.values.any() for matrix in found.matrices.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_where_the_processor_does_not_multiply_it(dtype, text, monkeypatch) -> None:
    monkeypatch.setattr(quantize_module, "resolve_precision", lambda *_, **__: "fp32")
    halved = wide_model().to(dtype)
    found = quantize(halved, tiny_tokenizer(), plan(text), classifier=False)
    exact = quantize(halved.float(), tiny_tokenizer(), plan(text), classifier=False)
    assert found.matrices.keys() == exact.matrices.keys()
    for path, matrix in found.matrices.items():
        assert np.array_equal(matrix.values, exact.matrices[path].values)


def test_short_text_makes_shorter_windows_and_too_short_is_refused(model, tmp_path) -> None:
    def read(words: int) -> Tensor:
        path = tmp_path / "text.txt"
        path.write_text("zebra " * words)
        return quantize(model, tiny_tokenizer(), plan(CalibrationText((str(path),), None)), classifier=False)

    assert read(30).matrices
    with pytest.raises(UsageError, match="too few to calibrate on"):
        read(1)
