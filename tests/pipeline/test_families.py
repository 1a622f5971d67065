"""Every supported decoder family, tiny and random, through train, search and export with verification on real
runtimes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.request import ExportRequest
from export.stage import export_subnet
from search.front import BestRule
from search.stage import search
from shearling.artefact import open_artefact
from shearling.elastic.mask import MASK_FILE, check_masked_zeros, load_masks
from shearling.elastic.subnet import open_subnet
from shearling.model.checkpoint import load_model
from shearling.model.layers import find_layers
from shearling.run import Run
from tests.support.exact_merges import merge_error
from tests.support.longer import mostly_slow
from tests.support.small_searches import SMALL_SEARCH
from tests.support.tiny_models import FAMILIES, RARER
from tests.support.tiny_runs import GROUPS, LLAMA_GROUPS, tiny_recipe
from train.stage import run_recipe

# transformers' module of GPTBigCode, when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

SETTINGS = replace(SMALL_SEARCH, algorithm="heuristic", evaluations=1)


@pytest.fixture(
    scope="module",
    params=mostly_slow(
        (*FAMILIES, *RARER, "mixtral", "qwen3_moe"), fast=("llama_tied_gqa", "bloom", "gpt2", "mixtral")
    ),
)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def searched(family: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the family up to `best.json`, pruned with Wanda and trained under the mask."""
    directory = tmp_path_factory.mktemp(family)
    recipe = tiny_recipe(directory, family=family, sparsity={"method": "wanda"}, train={"steps": 3})
    run_recipe(recipe, directory / "run")
    search(Run(directory / "run"), SETTINGS, BestRule())
    return Run(directory / "run")


def test_train_and_search(family: str, searched: Run) -> None:
    opened = open_subnet(searched.search / "best.json")
    names = [name.rpartition(".")[2] for modules in GROUPS.get(family, LLAMA_GROUPS).values() for name in modules]
    assert list(opened.space.adapter.target_modules) == names
    model = load_model(searched.sparse)
    assert opened.subnet.ranks.keys() <= find_layers(model).linears().keys()
    assert len(opened.subnet.ranks) == len(names) * opened.subnet.base.num_layers
    assert set(opened.subnet.ranks.values()) == {4}
    check_masked_zeros(model, load_masks(searched.sparse / MASK_FILE))


def test_export_agrees_with_the_super_network_in_every_format(searched: Run, tmp_path: Path) -> None:
    request = ExportRequest(output=tmp_path / "export", formats=("hf", "peft", "openvino", "onnx"), verify="strict")
    exported = export_subnet(searched.search / "best.json", request)
    assert open_artefact(exported.path, kind="export").sha256 == exported.artefact.sha256
    merged = load_model(exported.path / "model")
    check_masked_zeros(merged, load_masks(searched.sparse / MASK_FILE))
    report = exported.report
    assert report.exact
    assert report.violations == []
    assert merge_error(searched.search / "best.json", exported.path / "model") == 0.0
    _, *runtimes = report.parity
    assert {"openvino", "onnx"} <= {check.candidate for check in runtimes}
    for check in runtimes:
        if check.precision == "fp32":
            assert check.parity.max_abs <= 1e-3
            assert check.parity.top1_agreement == 1.0
    assert {zeros.format for zeros in report.zeros} >= {"model", "openvino", "onnx"}
    assert all(zeros.zeros == zeros.pruned > 0 for zeros in report.zeros)
