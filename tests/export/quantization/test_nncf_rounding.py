"""int4 by NNCF's AWQ, scale estimation and GPTQ: every zero is kept, and every file holds the same integers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig, Phi3Config, Phi3ForCausalLM, PreTrainedModel

from export.formats.classifier import OpenVinoClassifier
from export.formats.onnx import onnx_logits, write_onnx
from export.formats.openvino import FLOAT32_CPU, MODEL_XML, OpenVinoDecoder, convert, openvino_logits, write_openvino
from export.number_formats.int4 import quantize_groups
from export.packing.linear_graph import find_products
from export.packing.packed_onnx import _find_products
from export.packing.stored_weight import read_matrix
from export.quantization import nncf_rounding
from export.quantization.nncf_rounding import round_by_nncf
from export.quantization.quantize import SEED, Quantized
from export.quantization.settings import Algorithm, PlannedQuantization
from export.quantization.text import CalibrationText, windows_of
from shearling.elastic.mask import Masks
from shearling.errors import ModelUnsupported, UsageError
from shearling.kernel.packed_format import Matrix, ValueType
from shearling.model.layers import find_layers
from shearling.quantization.rounding import LEAST_HALF
from tests.support.exported_files import count_zeros, stored_as
from tests.support.packing_cases import BLOCKS
from tests.support.rounded_models import divergence, rounded
from tests.support.tiny_models import CORPUS, ENCODER_SHAPE, bloom, build_tiny, phi3, tiny_tokenizer, wide_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it

SAMPLES = 16
WAYS: dict[str, tuple[Algorithm, ...]] = {
    "awq": ("awq",),
    "scale estimation": ("scale_estimation",),
    "gptq": ("gptq",),
    "all": ("awq", "scale_estimation", "gptq"),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> CalibrationText:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(CORPUS * 40))
    return CalibrationText((str(path),), None)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return wide_model()


def masks_of(model: PreTrainedModel) -> Masks:
    return {path: linear.weight.detach() != 0 for path, linear in find_layers(model).linears().items()}


def ir_of(model: PreTrainedModel, directory: Path) -> Any:
    return convert(model, directory, OpenVinoDecoder().conversion, stored_as("int4"))


def round_model(
    model: PreTrainedModel,
    text: CalibrationText,
    directory: Path,
    *algorithms: Algorithm,
    masks: Masks | None = None,
    group: int = 32,
    **options: Any,
) -> Quantized:
    plan = PlannedQuantization(
        None, text, group, narrower=True, samples=SAMPLES, tuning_steps=0, algorithms=algorithms, **options
    )
    ir = ir_of(model, directory)
    return round_by_nncf(ir, model, tiny_tokenizer(), plan, masks=masks, classifier=False)


@pytest.fixture(scope="module")
def found(model, text, tmp_path_factory) -> dict[str, Quantized]:
    return {
        name: round_model(model, text, tmp_path_factory.mktemp("ir"), *algorithms, masks=masks_of(model))
        for name, algorithms in WAYS.items()
    }


def nonzero_of(matrices: Mapping[str, Matrix], masks: Masks) -> int:
    """Pruned weights that are something else than zero."""
    return sum(int(np.count_nonzero(matrices[path].values[~mask.numpy()])) for path, mask in masks.items())


def test_gptq_alone_loses_zeros_and_they_are_put_back(model, text, found, tmp_path) -> None:
    masks, algorithms = masks_of(model), WAYS["gptq"]
    as_made = round_model(model, text, tmp_path, *algorithms)
    lost = nonzero_of(as_made.matrices, masks)
    assert lost > 0.005 * sum(int((~mask).sum()) for mask in masks.values())
    assert as_made.put_back == 0
    assert found["gptq"].put_back == lost
    assert found["all"].put_back > 0
    assert (found["awq"].put_back, found["scale estimation"].put_back) == (0, 0)
    for quantized in found.values():
        assert nonzero_of(quantized.matrices, masks) == 0
    # Nothing else was changed, and what is chosen is the same each time.
    for path, matrix in found["gptq"].matrices.items():
        kept = masks[path].numpy()
        assert np.array_equal(matrix.values[kept], as_made.matrices[path].values[kept])
        assert np.array_equal(matrix.scales, as_made.matrices[path].scales)


@pytest.mark.parametrize("name", WAYS)
def test_every_file_holds_these_integers_with_every_zero(name, model, found, tmp_path) -> None:
    import onnx_ir

    matrices, masks = found[name].matrices, masks_of(model)
    assert matrices.keys() == masks.keys()
    for kernel in ("stock", "sparse"):
        directory, storage = tmp_path / kernel / "openvino", stored_as("int4", kernel=kernel)
        write_openvino(model, tiny_tokenizer(), directory, storage, sparsity={}, integers=matrices)
    write_onnx(model, tiny_tokenizer(), tmp_path / "stock" / "onnx", stored_as("int4"), integers=matrices)
    for kernel in ("stock", "sparse"):
        checks = count_zeros(tmp_path / kernel, masks)
        assert checks
        assert all(check.zeros == check.pruned > 0 for check in checks.values())
    ir = openvino.Core().read_model(tmp_path / "stock" / "openvino" / MODEL_XML)
    graph = onnx_ir.load(tmp_path / "stock" / "onnx" / "model.onnx").graph
    in_openvino = {item.path: read_matrix(item) for item in find_products(ir) if item.storage == "int4"}
    in_onnx = {item.path: item.matrix for item in _find_products(graph)}
    for stored in (in_openvino, in_onnx):
        assert stored.keys() == matrices.keys()
        for path, matrix in matrices.items():
            assert np.array_equal(stored[path].values, matrix.values)
            assert np.array_equal(stored[path].scales, matrix.scales)
    # Up to the embeddings and the head, and activations in int8.
    blocks = [np.asarray(block) for block in BLOCKS]
    with torch.no_grad():
        changed = rounded(model, matrices)
        expected = [changed(input_ids=torch.tensor(block)[None]).logits[0].numpy() for block in blocks]
    spread = max(float(np.ptp(block)) for block in expected)
    for logits, limit in (
        (openvino_logits(tmp_path / "stock" / "openvino", blocks, config=FLOAT32_CPU), 0.02),
        (openvino_logits(tmp_path / "sparse" / "openvino", blocks, config=FLOAT32_CPU), 0.05),
        (onnx_logits(tmp_path / "stock" / "onnx", blocks), 0.05),
    ):
        assert max(float(np.abs(a - b).max()) for a, b in zip(expected, logits, strict=True)) < limit * spread


def errors_of(model: PreTrainedModel, matrices: Mapping[str, Matrix], text: CalibrationText) -> list[float]:
    """Of each matrix, the squared error of its outputs for the mean input of each window, as a share of their squares:
    what NNCF chooses scales by.
    """
    windows = torch.stack(windows_of(text.streams(tiny_tokenizer()), SAMPLES, seed=SEED))
    linears, entered = find_layers(model).linears(), dict[str, Tensor]()
    handles = [
        linear.register_forward_pre_hook(lambda _, inputs, path=path: entered.update({path: inputs[0].mean(dim=1)}))
        for path, linear in linears.items()
    ]
    with torch.no_grad():
        model(input_ids=windows)
    for handle in handles:
        handle.remove()
    changed, errors = rounded(model, matrices), []
    for path, linear in linears.items():
        outputs, others = (entered[path] @ item.weight.detach().T for item in (linear, changed.get_submodule(path)))
        errors.append(float((outputs - others).square().sum() / outputs.square().sum()))
    return errors


def test_scales_fit_the_text_better_than_those_of_rounding_to_the_nearest(model, text, found, tmp_path) -> None:
    made = find_products(quantize_groups(ir_of(model, tmp_path), group_size=32))
    nearest = {item.path: read_matrix(item) for item in made if item.path in found["awq"].matrices}
    estimated = found["scale estimation"].matrices
    assert nearest.keys() == estimated.keys()
    assert np.mean(errors_of(model, estimated, text)) < 0.6 * np.mean(errors_of(model, nearest, text))
    for name in ("scale estimation", "gptq"):
        assert divergence(model, rounded(model, found[name].matrices)) < divergence(model, rounded(model, nearest))


def factors_of_rows(after: nn.Module, before: nn.Module, *, transposed: bool = False) -> Tensor:
    """What each row of a weight was multiplied by, or each column; up to rounding."""
    changed, weight = (item.weight.detach().T if transposed else item.weight.detach() for item in (after, before))
    return (changed * weight).sum(dim=1) / weight.square().sum(dim=1)


def test_awq_scales_columns_and_the_rows_before_them_by_the_inverse(model, found) -> None:
    changed, scaled = rounded(model, found["awq"].matrices), False
    for index in range(2):
        up, down = (f"model.layers.{index}.mlp.{name}" for name in ("up_proj", "down_proj"))
        rows = factors_of_rows(changed.get_submodule(up), model.get_submodule(up))
        columns = factors_of_rows(changed.get_submodule(down), model.get_submodule(down), transposed=True)
        torch.testing.assert_close(rows * columns, torch.ones_like(rows), rtol=0.2, atol=0)
        scaled |= bool((rows.log().abs() > 0.2).any())
    assert scaled


def test_a_group_without_a_weight_has_the_least_scale_and_none_is_zero(text, tmp_path) -> None:
    model = wide_model()
    up = model.get_submodule("model.layers.0.mlp.up_proj")
    with torch.no_grad():
        up.weight[3] = 0
        up.weight[5, 32:] = 0
    quantized = round_model(model, text, tmp_path, "scale_estimation", masks=masks_of(model))
    matrix = quantized.matrices["model.layers.0.mlp.up_proj"]
    assert (matrix.scales[3] == LEAST_HALF).all()
    assert matrix.scales[5, 1] == LEAST_HALF
    for item in quantized.matrices.values():
        assert np.isfinite(item.scales).all()
        assert np.count_nonzero(item.scales) == item.scales.size
        assert item.scales.dtype == np.float16


@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_and_the_head_too(tied, text, tmp_path) -> None:
    model = wide_model(tied=tied)
    quantized = round_model(model, text, tmp_path / "raw", "scale_estimation", all_layers=True)
    embedding, head = quantized.matrices["model.embed_tokens"], quantized.matrices["lm_head"]
    assert (embedding is head) == tied
    assert quantized.in_four_bits == len(quantized.matrices) == len(find_layers(model).linears()) + 2
    write_openvino(
        model, tiny_tokenizer(), tmp_path / "ov", stored_as("int4"), sparsity={}, integers=quantized.matrices
    )
    write_onnx(model, tiny_tokenizer(), tmp_path / "onnx", stored_as("int4"), integers=quantized.matrices)
    blocks = [np.asarray(block) for block in BLOCKS]
    with torch.no_grad():
        changed = rounded(model, quantized.matrices)
        expected = [changed(input_ids=torch.tensor(block)[None]).logits[0].numpy() for block in blocks]
    spread = max(float(np.ptp(block)) for block in expected)
    for logits, limit in (
        (openvino_logits(tmp_path / "ov", blocks, config=FLOAT32_CPU), 1e-5),
        (onnx_logits(tmp_path / "onnx", blocks), 0.05),
    ):
        assert max(float(np.abs(a - b).max()) for a, b in zip(expected, logits, strict=True)) < limit * spread


def test_a_share_in_four_bits_is_that_of_nncf(model, text, found, tmp_path) -> None:
    """A matrix in eight bits takes the inverse of AWQ's scales like one in four."""
    quantized = round_model(model, text, tmp_path, "awq", ratio=0.5, masks=masks_of(model))
    sizes = {path: matrix.values.size for path, matrix in quantized.matrices.items()}
    four = {path for path, matrix in quantized.matrices.items() if matrix.value_type is ValueType.INT4}
    assert 0.3 < sum(sizes[path] for path in four) / sum(sizes.values()) <= 0.5
    assert quantized.in_four_bits == len(four)
    distances = [divergence(model, rounded(model, item.matrices)) for item in (quantized, found["awq"])]
    assert distances[0] < distances[1]


def test_weights_of_bfloat16_are_rounded_too(model, text, found, tmp_path) -> None:
    halved = copy.deepcopy(model).to(torch.bfloat16)
    quantized = round_model(halved, text, tmp_path, "gptq", masks=masks_of(model))
    assert quantized.put_back > 0
    assert nonzero_of(quantized.matrices, masks_of(model)) == 0
    assert divergence(model, rounded(model, quantized.matrices)) < 1.5 * divergence(
        model, rounded(model, found["gptq"].matrices)
    )


def test_a_width_that_no_group_divides_is_in_int8(text, tmp_path) -> None:
    model = wide_model(inner=72)
    quantized = round_model(model, text, tmp_path, "scale_estimation")
    eight = {path for path, matrix in quantized.matrices.items() if matrix.value_type is ValueType.INT8}
    assert eight == {path for path in quantized.matrices if "down_proj" in path}
    with pytest.raises(ModelUnsupported, match="AWQ has nothing to scale"):
        round_model(model, text, tmp_path / "awq", "awq")
    with pytest.raises(UsageError, match="no group of 16 columns or more divides"):
        round_model(wide_model(hidden=40, inner=72), text, tmp_path / "none", "scale_estimation")


def test_a_classifier_is_rounded_too(text, tmp_path) -> None:
    model = build_tiny(AutoModelForSequenceClassification.from_config, BertConfig(**ENCODER_SHAPE))
    plan = PlannedQuantization(None, text, 32, narrower=True, samples=4, tuning_steps=0, algorithms=("gptq",))
    ir = convert(model, tmp_path, OpenVinoClassifier().conversion, stored_as("int4"))
    quantized = round_by_nncf(ir, model, tiny_tokenizer(), plan, masks=None, classifier=True)
    assert quantized.matrices.keys() == find_layers(model).linears().keys()
    assert quantized.in_four_bits > 0
    assert all(matrix.values.any() for matrix in quantized.matrices.values())


def wide_phi3() -> PreTrainedModel:
    """As `phi3`, in widths that groups divide."""
    return build_tiny(
        Phi3ForCausalLM, Phi3Config(**{**phi3().config.to_dict(), "intermediate_size": 96, "hidden_size": 64})
    )


@pytest.mark.parametrize("make", [bloom, wide_phi3], ids=["no gate", "gate and product from one matrix"])
def test_awq_is_refused_where_no_matrix_takes_the_inverse(make, text, tmp_path, monkeypatch) -> None:
    with pytest.raises(ModelUnsupported, match="AWQ has nothing to scale") as raised:
        round_model(make(), text, tmp_path / "raw", "awq")
    assert raised.value.where == "--awq"
    if make is wide_phi3:
        # As in a graph that has a gate of the other kind as well.
        monkeypatch.setattr(nncf_rounding, "_check_awq", lambda *_: None)
        with pytest.raises(ModelUnsupported, match=r"AWQ multiplies the result of .*Swish"):
            round_model(make(), text, tmp_path / "more", "awq")
