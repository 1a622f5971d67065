"""Elastic widths from recipe to runtimes: train, search, cut, export and verify, on tiny models (algorithms 7.5)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.plan import plan_subnet
from export.request import ExportRequest
from export.stage import export_subnet
from search.describing import write_landmark
from search.front import BestRule
from search.stage import search
from shearling.elastic.reordering import REORDERING_FILE
from shearling.elastic.size import measure_network
from shearling.elastic.subnet import Subnet, open_subnet
from shearling.elastic.super_network import load_super_network
from shearling.errors import ArtefactMismatch, DocumentInvalid, NoCandidate
from shearling.model.checkpoint import load_model
from shearling.run import Run
from shearling.strict_json import read_document, write_document
from tests.support.exact_merges import merge_error
from tests.support.longer import mostly_slow
from tests.support.own_memory import in_own_memory
from tests.support.small_searches import SMALL_SEARCH
from tests.support.tiny_runs import tiny_recipe
from train.stage import run_recipe

SETTINGS = replace(SMALL_SEARCH, cost="macs")
WIDTHS = {
    "llama_tied_gqa": {"feed_forward": [100, 75, 50], "attention": [60, 30]},
    "qwen2": {"feed_forward": [[80, 40], [80, 60, 20]], "attention": [48, 24]},
    "bloom": {"feed_forward": [192, 144, 96]},
}


def make_run(directory: Path, family: str, *, masked: bool, reorder: str = "none") -> Run:
    width = {**WIDTHS[family], "reorder": reorder}
    recipe = tiny_recipe(directory, family=family, masked=masked, sparse=masked, width=width, train={"steps": 3})
    run_recipe(recipe, directory / "run")
    return Run(directory / "run")


def mixed(run: Run) -> tuple[Subnet, Path]:
    """A sub-network whose layers differ in every width, as a document beside the best one."""
    opened = open_subnet(run.search / "best.json")
    space = opened.space
    choice = {
        group.id: group.values[
            -1 if (group.kind == "width") == group.id.startswith("layers.0.") else len(group.values) // 2
        ]
        for group in space.groups
    }
    subnet = opened.subnet.model_copy(
        update={"choice": choice, "ranks": space.ranks(choice), "widths": space.widths(choice), "id": "mixed"}
    )
    path = run.path / "documents" / "mixed.json"
    path.parent.mkdir(exist_ok=True)
    write_document(path, subnet)
    return subnet, path


KINDS = (("llama_tied_gqa", True), ("qwen2", False), ("bloom", True))
"""Family, and whether its adapters are trained under the mask."""


@pytest.fixture(scope="module", params=mostly_slow(KINDS, fast=KINDS[:1]), ids=lambda value: value[0])
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    family, masked = request.param
    run = make_run(tmp_path_factory.mktemp(family), family, masked=masked, reorder="wanda" if masked else "l1")
    search(run, SETTINGS, BestRule(accuracy_delta=1.0))
    return run


def test_every_format_is_the_active_sub_network(searched: Run, tmp_path: Path) -> None:
    """Invariants 29, 33 and 34: unequal layers, cut and exported, agree with the super-network; the weights are
    counted."""
    subnet, path = mixed(searched)
    network = load_super_network(searched)
    assert len({subnet.widths[name] for name in subnet.widths}) > 1
    request = ExportRequest(output=tmp_path / "export", formats=("hf", "peft", "openvino", "onnx"))
    planned = plan_subnet(path, request).describe()
    exported = export_subnet(path, request)
    report = exported.report
    assert planned["narrowed"] == report.narrowed > 0
    merged, *runtimes = report.parity
    assert merged.parity.max_abs <= 1e-5
    if network.masks is not None:
        assert merge_error(path, exported.path / "model") == 0.0
    assert {check.candidate for check in runtimes} >= {"openvino", "onnx"}
    assert all(check.parity.max_abs <= 1e-5 for check in runtimes if check.precision == "fp32")
    assert report.parameters == measure_network(network).parameters(network.space.cuts(subnet.choice))
    assert not (exported.path / "adapter").exists()
    model = in_own_memory(load_model(exported.path / "model"))
    for name, width in subnet.widths.items():
        assert model.get_submodule(name).out_features == width
    if network.masks is not None:
        assert all(check.zeros == check.pruned > 0 for check in report.zeros)
    network.activate(subnet.choice)
    in_own_memory(network.model)
    tokens = torch.arange(5, 17)[None]
    with torch.inference_mode(), network.materialised():
        expected = network.model(input_ids=tokens).logits
        assert (model(input_ids=tokens).logits - expected).abs().max() <= (0.0 if network.masks is not None else 1e-5)
        assert model.generate(tokens, max_new_tokens=4, do_sample=False).shape[1] > tokens.shape[1]


def test_the_plan_of_the_largest_narrows_nothing(searched: Run, tmp_path: Path) -> None:
    write_landmark(searched, "largest", tmp_path / "largest.json", ratios=(), formats=())
    planned = plan_subnet(tmp_path / "largest.json", ExportRequest(output=tmp_path / "export", formats=("openvino",)))
    assert planned.describe()["narrowed"] == 0


def test_a_narrowed_model_takes_the_sparse_kernel(searched: Run, tmp_path: Path) -> None:
    """Sparsity, widths and ranks in one file: every layer packed at the size that it was cut to."""
    subnet, path = mixed(searched)
    exported = export_subnet(
        path,
        ExportRequest(
            output=tmp_path / "export", formats=("openvino",), weight_format="bf16", sparse_kernels=("openvino",)
        ),
    )
    report = exported.report
    packed = {layer.path: layer.shape[0] for layer in report.packings["openvino"].layers}
    if load_super_network(searched).masks is None:
        # Nothing is zero, so nothing is packed, and each layer says why.
        assert not packed
        assert report.packings["openvino"].kept.keys() >= subnet.widths.keys()
        return
    assert {name: packed[name] for name in subnet.widths} == subnet.widths
    assert [check.zeros == check.pruned > 0 for check in report.zeros] == [True]


def test_the_cheapest_within_the_delta_is_the_best(searched: Run) -> None:
    """The rule of LoNAS; the journal holds what it is decided by."""
    best = read_document(searched.search / "best.json", Subnet)
    assert best.mode == "lonas"
    points = json.loads((searched.search / "pareto.json").read_text())
    assert points["objectives"] == {"accuracy": "max", "macs": "min"}
    records = [json.loads(line) for line in (searched.search / "journal.jsonl").read_text().splitlines()]
    assert best.metrics is not None
    assert best.metrics.macs_m == min(record["macs_m"] for record in records)
    assert best.provenance is not None
    assert best.provenance.best_rule.startswith("least macs with accuracy >= that of the largest sub-network - 1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"choice": {"layers.0.attention_width": 45}}, "not a multiple of 30"),
        ({"choice": {"layers.0.feed_forward_width": 60}}, "Allowed: 100, 75, 50"),
        ({"widths": {"model.layers.0.mlp.up_proj": 99}}, "the choice gives"),
        ({"mode": "rank"}, "of the mode 'lonas'"),
        ({"permutation": None}, "permutation is missing"),
    ],
)
def test_bad_documents_are_refused(tmp_path_factory: pytest.TempPathFactory, damage: dict, message: str) -> None:
    run = _shared(tmp_path_factory)
    document = json.loads((run.search / "best.json").read_text())
    for key, value in damage.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    path = run.path / "documents" / "damaged.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
    with pytest.raises(DocumentInvalid, match=message) as caught:
        open_subnet(path)
    assert caught.value.exit_code == 3


_SHARED: list[Run] = []


def _shared(factory: pytest.TempPathFactory) -> Run:
    if not _SHARED:
        run = make_run(factory.mktemp("shared"), "llama_tied_gqa", masked=True, reorder="l1")
        search(run, SETTINGS, BestRule(accuracy_delta=0.0))
        _SHARED.append(run)
    return _SHARED[0]


def test_nothing_within_the_delta_is_exit_1(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = _shared(tmp_path_factory)
    with pytest.raises(NoCandidate) as caught:
        search(run, SETTINGS, BestRule(accuracy_delta=0.0, reference_accuracy=1.0, min_accuracy=1.0), force=True)
    assert caught.value.exit_code == 1
    search(run, SETTINGS, BestRule(accuracy_delta=0.0), force=True)


def test_another_order_than_the_one_named_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = _shared(tmp_path_factory)
    document = json.loads((run.search / "best.json").read_text())
    document["permutation"]["sha256"] = "0" * 64
    path = run.path / "documents" / "reordered.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
    with pytest.raises(ArtefactMismatch, match="order of the channels differs"):
        open_subnet(path)


def test_an_order_made_for_another_base_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", "llama_tied_gqa", masked=True, reorder="l1")
    file = run.super_adapter / REORDERING_FILE
    from shearling.elastic.reordering import load_reordering

    load_reordering(file, base=run.sparse)
    with pytest.raises(ArtefactMismatch, match="ordered for other weights") as caught:
        load_reordering(file, base=run.base)
    assert caught.value.exit_code == 3
