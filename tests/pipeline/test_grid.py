"""Trained on a grid of integers, merged and exported: the files hold what was trained, and nothing rounds it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch

from export.formats.onnx import onnx_logits
from export.formats.openvino import FLOAT32_CPU, MODEL_XML, openvino_logits
from export.packing.linear_graph import find_products
from export.packing.packed_onnx import _find_products
from export.packing.stored_weight import read_matrix
from export.plan import plan_subnet
from export.quantization.settings import Quantization
from export.reporting.report import ExportReport
from export.request import ExportRequest
from export.stage import export_subnet
from search.front import BestRule
from search.stage import search
from shearling.elastic.grid_file import GRID_FILE
from shearling.elastic.subnet import open_subnet
from shearling.elastic.super_network import SuperNetwork, load_super_network
from shearling.errors import ArtefactCorrupt, ArtefactMismatch, DocumentInvalid, MergeRefused, RecipeInvalid, UsageError
from shearling.kernel.packed_format import Matrix
from shearling.model.checkpoint import save_model
from shearling.model.layers import find_layers
from shearling.recipe.quantization import QuantizationSection
from shearling.recipe.recipe import section_as_json
from shearling.run import Run
from shearling.strict_json import read_document
from tests.support.exact_merges import merge_error
from tests.support.packing_cases import BLOCKS
from tests.support.small_searches import SMALL_SEARCH
from tests.support.tiny_models import tiny_tokenizer, wide_model
from tests.support.tiny_runs import tiny_recipe
from train.stage import run_recipe
from train.super_adapter.grid import grid_groups

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it

GRIDS: dict[str, dict[str, object]] = {"int4": {"bits": 4, "group_size": 32}, "int8": {"bits": 8}}


def make_run(directory: Path, quantization: dict[str, object], **options: Any) -> Run:
    model = wide_model()
    save_model(model, tiny_tokenizer(), directory / "source")
    recipe = tiny_recipe(directory, quantization=quantization, train={"steps": 12, "learning_rate": 0.02}, **options)
    run_recipe(recipe, directory / "run")
    run = Run(directory / "run")
    search(run, SMALL_SEARCH, BestRule(accuracy_delta=1.0))
    return run


@pytest.fixture(scope="module", params=["int4", "int8"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    return make_run(tmp_path_factory.mktemp(request.param), GRIDS[request.param]), request.param


@pytest.fixture(scope="module")
def exported(trained: tuple[Run, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, weight_format = trained
    output = tmp_path_factory.mktemp("export")
    for kernel in ((), ("openvino",)):
        request = ExportRequest(
            output=output / ("sparse" if kernel else "stock"),
            # ONNX has stock kernels in both, and the same file.
            formats=("openvino", "hf") if kernel else ("openvino", "onnx", "hf"),
            weight_format=weight_format,
            sparse_kernels=kernel,
        )
        export_subnet(run.search / "best.json", request)
    return output


def chosen(run: Run) -> SuperNetwork:
    network = load_super_network(run)
    network.activate(open_subnet(run.search / "best.json").subnet.choice)
    return network


def trained_weights(network: SuperNetwork) -> dict[str, np.ndarray]:
    """What the training forward multiplies by."""
    assert network.grids is not None
    weights = {}
    for path in network.grids.matrices:
        layer = network.layers.get(path)
        weight = network.model.get_submodule(path).weight if layer is None else layer.merged_weight()
        weights[path] = weight.detach().numpy()
    return weights


def weight_of(matrix: Matrix) -> np.ndarray:
    return matrix.values * np.repeat(matrix.scales.astype(np.float32), matrix.group_size, axis=1)


def test_training_moves_integers_and_every_rank_is_on_the_grid(trained: tuple[Run, str]) -> None:
    network = load_super_network(trained[0])
    assert network.grids is not None
    moved = 0
    for choice in (network.space.maximal(), network.space.minimal()):
        network.activate(choice)
        for path, weight in trained_weights(network).items():
            rounded = network.grids.matrices[path]
            codes = weight / np.repeat(rounded.scales.numpy(), rounded.group_size, axis=1)
            assert np.abs(codes - codes.round()).max() < 1e-4
            moved += int((codes.round() != rounded.codes.numpy()).sum())
    assert moved > 0


def test_files_hold_bit_for_bit_what_was_trained(trained: tuple[Run, str], exported: Path) -> None:
    import onnx_ir
    from safetensors.torch import load_file

    run, _ = trained
    wanted = trained_weights(chosen(run))
    ir = openvino.Core().read_model(exported / "stock" / "openvino" / MODEL_XML)
    graph = onnx_ir.load(exported / "stock" / "onnx" / "model.onnx").graph
    in_openvino = {item.path: weight_of(read_matrix(item)) for item in find_products(ir)}
    in_onnx = {item.path: item.matrix for item in _find_products(graph)}
    in_hf = load_file(exported / "stock" / "model" / "model.safetensors")
    for path, weight in wanted.items():
        assert np.array_equal(in_openvino[path], weight)
        assert np.array_equal(in_hf[f"{path}.weight"].numpy(), weight)
        matrix, columns = in_onnx[path], weight.shape[1]
        scales = np.repeat(matrix.scales.astype(np.float32), matrix.group_size, axis=1)[:, :columns]
        assert np.array_equal(matrix.values * scales, weight)


def test_runtimes_compute_what_was_trained(trained: tuple[Run, str], exported: Path) -> None:
    """Up to the embeddings and the head, which OpenVINO has in int8, and activations in fixed point."""
    run, _ = trained
    network = chosen(run)
    blocks = [np.asarray(block) for block in BLOCKS]
    with torch.no_grad(), network.materialised():
        expected = [network.model(input_ids=torch.tensor(block)[None]).logits[0].numpy() for block in blocks]
    spread = max(float(np.ptp(block)) for block in expected)
    for found, limit in (
        (openvino_logits(exported / "stock" / "openvino", blocks, config=FLOAT32_CPU), 0.02),
        (openvino_logits(exported / "sparse" / "openvino", blocks, config=FLOAT32_CPU), 0.05),
        (onnx_logits(exported / "stock" / "onnx", blocks), 0.05),
    ):
        assert max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)) < limit * spread


def test_the_merge_is_exact_and_every_zero_is_in_every_file(trained: tuple[Run, str], exported: Path) -> None:
    bits = int(trained[1].removeprefix("int"))
    for kernel in ("stock", "sparse"):
        report = read_document(exported / kernel / "report.json", ExportReport)
        assert (report.merge, report.exact, report.trained_bits) == ("masked", True, bits)
        assert f"integers of {bits} bits" in (exported / kernel / "README.md").read_text()
        assert merge_error(trained[0].search / "best.json", exported / kernel / "model") == 0.0
        assert report.zeros
        assert all(check.zeros == check.pruned > 0 for check in report.zeros)
        assert report.certificate is not None
        assert report.integers_certificate is not None
        assert (report.integers_certificate.zeros, report.certificate.accidental) == (
            report.certificate.zeros,
            report.integers_certificate.accidental,
        )


def test_what_would_round_again_is_refused(trained: tuple[Run, str], tmp_path: Path) -> None:
    run, weight_format = trained
    best, other = run.search / "best.json", {"int4": "int8", "int8": "int4"}[weight_format]
    with pytest.raises(UsageError, match="would round them again") as raised:
        export_subnet(best, ExportRequest(output=tmp_path / "x", formats=("openvino",), weight_format=other))
    assert weight_format in str(raised.value.remedy)
    if weight_format == "int4":
        for asked in (Quantization("best"), Quantization(awq=True)):
            request = ExportRequest(tmp_path / "x", ("openvino",), weight_format="int4", quantization=asked)
            with pytest.raises(UsageError, match="need no rounding"):
                export_subnet(best, request)
    with pytest.raises(MergeRefused, match="exact only when merged into them"):
        export_subnet(best, ExportRequest(output=tmp_path / "x", formats=("hf",), merge="dense"))


def planned_formats(run: Run, output: Path) -> list[str]:
    request = ExportRequest(output=output, formats=("openvino", "hf", "peft"))
    return [item.entry.name for item in plan_subnet(run.search / "best.json", request).formats]


def test_an_adapter_whose_base_is_not_rounded_is_left_out(
    trained: tuple[Run, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned_formats(trained[0], tmp_path / "x") == ["hf", "openvino"]
    told = capsys.readouterr().err
    assert "left out: peft" in told
    assert "not rounded" in told


def test_a_document_and_a_grid_that_differ_are_refused(trained: tuple[Run, str], tmp_path: Path) -> None:
    import shutil

    run = Run(tmp_path / "run")
    shutil.copytree(trained[0].path, run.path)
    best = run.search / "best.json"
    content = json.loads(best.read_text())
    best.write_text(json.dumps({**content, "grid": None}))
    with pytest.raises(DocumentInvalid, match=r"grid\.bits"):
        open_subnet(best)
    best.write_text(json.dumps({**content, "grid": {**content["grid"], "sha256": "0" * 64}}))
    with pytest.raises(ArtefactMismatch, match="grid of the weights"):
        open_subnet(best)
    best.write_text(json.dumps(content))
    with (run.super_adapter / GRID_FILE).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(ArtefactCorrupt):
        open_subnet(best)


def test_beside_integers_an_adapter_without_the_mask_stays_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path, GRIDS["int4"], masked=False)
    best = run.search / "best.json"
    assert open_subnet(best).subnet.merge.default == "separate"
    assert planned_formats(run, tmp_path / "export") == ["openvino"]
    request = ExportRequest(output=tmp_path / "export", formats=("openvino",), weight_format="int4")
    directory = export_subnet(best, request).path
    network = chosen(run)
    assert network.grids is not None
    ir = openvino.Core().read_model(directory / "openvino" / MODEL_XML)
    found = {item.path: read_matrix(item) for item in find_products(ir) if item.storage == "int4"}
    assert found.keys() == network.grids.matrices.keys()
    for path, rounded in network.grids.matrices.items():
        assert np.array_equal(found[path].values, rounded.codes.numpy())


@pytest.mark.parametrize(
    ("quantization", "options", "message"),
    [
        ({"bits": 5}, {}, "bits"),
        ({"bits": 8, "group_size": 32}, {}, "one scale a row"),
        ({"bits": 4}, {"width": {"feed_forward": [96, 64], "reorder": "l1"}}, "exclude each other"),
    ],
)
def test_recipes_that_cannot_be_are_refused(
    quantization: dict[str, object], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeInvalid, match=message):
        tiny_recipe(tmp_path, quantization=quantization, **options)


@pytest.mark.parametrize(
    ("quantization", "message", "remedy"),
    [
        ({"bits": 4}, "no group of 16 columns or more divides the inputs of", "Set bits = 8"),
        (
            {"bits": 4, "group_size": 32},
            "a group of 32 does not divide the 48 inputs of model.layers.0",
            "Leave it out",
        ),
    ],
)
def test_a_width_that_no_group_divides_is_refused(
    quantization: dict[str, object], message: str, remedy: str, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, family="llama", quantization=quantization)
    with pytest.raises(RecipeInvalid, match=message) as raised:
        run_recipe(recipe, tmp_path / "run")
    assert remedy in str(raised.value.remedy)
    assert raised.value.where == "quantization.group_size"
    assert not (tmp_path / "run" / "sparse").exists()


def test_a_group_that_was_asked_for_is_kept_or_refused_and_another_is_made_smaller() -> None:
    """As `--group-size` of an export."""
    layers = find_layers(wide_model(hidden=64, inner=96))
    with pytest.raises(RecipeInvalid, match=r"a group of 64 does not divide the 96 inputs of .*down_proj") as raised:
        grid_groups(layers, QuantizationSection(group_size=64))
    assert raised.value.remedy == "Set 32"
    assert set(grid_groups(layers, QuantizationSection(group_size=32)).values()) == {32}
    found = grid_groups(layers, QuantizationSection())
    assert {size for path, size in found.items() if "down_proj" in path} == {32}
    assert {size for path, size in found.items() if "down_proj" not in path} == {64}
    assert set(grid_groups(layers, QuantizationSection(bits=8)).values()) == {64, 96}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_section_that_a_manifest_keeps_can_be_read_again(bits: int) -> None:
    section = QuantizationSection(bits=bits)
    kept = json.loads(json.dumps(section_as_json(section)))
    assert QuantizationSection.model_validate(kept) == section
