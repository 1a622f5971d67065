"""A search among zeros and formats of layers, on tiny runs, to the exported files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import openvino
import pytest
import torch

from export.packing.linear_graph import module_path
from export.quantization.settings import Quantization
from export.request import OWN_FORMAT, ExportRequest
from export.stage import export_subnet
from search.costing import CostCounter
from search.describing import write_landmark
from search.front import BestRule
from search.journal import read_journal
from search.latency.table import LatencyTable
from search.layer_forms import LayerForm, LayerForms
from search.mixing_options import parse_layer_formats, parse_ratios
from search.opening import open_inputs, open_run
from search.pick import describe_row, pick_row
from search.resumption import question_of
from search.settings import settle
from search.stage import Searched, search
from search.stored_bytes import StoredForm
from search.strategies.grid import Grid
from search.uniform import uniform_mixtures
from shearling.elastic.subnet import describe_subnet, open_subnet
from shearling.errors import ArtefactMismatch, NoCandidate, UsageError
from shearling.executors.executor import Workforce
from shearling.model.checkpoint import load_model
from shearling.run import Run
from shearling.strict_json import write_document
from tests.support.latency_tables import CONSTANT_MS, invented_document, invented_ms
from tests.support.mixed_runs import FORMATS, RATIOS, mixed_network, mixed_run, one_of_each, open_mixed
from tests.support.small_searches import SMALL_SEARCH
from tests.support.stage_commands import run_stage
from tests.support.super_networks import logits

MIXED = dataclasses.replace(SMALL_SEARCH, ratios=RATIOS, layer_formats=FORMATS, sparse_kernel=True, cost="auto")
NOTHING_MEETS = BestRule(min_accuracy=1.5)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return mixed_run(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def searched(masked: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Searched]:
    run = Run(shutil.copytree(masked.path, tmp_path_factory.mktemp("searched") / "run"))
    return run, search(run, dataclasses.replace(MIXED, max_bytes=middle_bytes(run)), BestRule())


@pytest.fixture
def run(masked: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(masked.path, tmp_path / "run"))


def counter(run: Run, *, sparse_kernel: bool = True, **options: tuple[object, ...]) -> tuple[CostCounter, Grid]:
    opened = open_mixed(run, **options)
    stored = StoredForm("int4", sparse_kernel)
    return CostCounter(mixed_network(opened), tokens=16, stored=stored), Grid.of(opened.space)


def middle_bytes(run: Run) -> int:
    counts, grid = counter(run)
    return (counts.costs(grid.maximal).model_bytes + counts.costs(grid.minimal).model_bytes) // 2


def test_the_best_keeps_the_limit_and_its_layers_differ_from_the_largest(searched):
    run, found = searched
    opened = open_subnet(run.search / "best.json")
    assert json.loads((run.search / "best.json").read_text())["schema"] == "shearling.subnet/2"
    assert opened.subnet.metrics.model_bytes == found.best.model_bytes <= middle_bytes(run)
    assert found.best.cost_kind == "bytes"
    assert opened.subnet.choice != opened.space.maximal()


def test_a_document_of_any_row_is_that_of_the_mixture(searched):
    run, found = searched
    for record in found.explored[:3]:
        subnet = describe_row(run, record.i, location=run.search)
        assert subnet.choice == open_mixed(run).space.decode(record.choice_idx)
        assert subnet.mixture is not None


def test_rows_are_of_the_variants_that_were_searched(searched, tmp_path):
    run = Run(shutil.copytree(searched[0].path, tmp_path / "run"))
    manifest = run.search / "manifest.json"
    content = json.loads(manifest.read_text())
    content["parents"]["variants"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtefactMismatch, match="variants are not those"):
        pick_row(run, 0, tmp_path / "picked.json")


def test_what_is_exported_is_what_was_measured(searched, tmp_path):
    run, found = searched
    request = ExportRequest(
        tmp_path / "export", ("openvino", "onnx", "hf", "peft"), OWN_FORMAT, ("openvino",), verify="warn"
    )
    export = export_subnet(run.search / "best.json", request)
    opened = open_mixed(run)
    network, choice = mixed_network(opened), open_subnet(run.search / "best.json").subnet.choice
    network.activate(choice)
    # The weights themselves, whatever was rounded: those of the measured network to the last bit.
    merged = load_model(export.path / "model")
    for path, rounded in network.integers():
        assert torch.equal(merged.get_submodule(path).weight, rounded.weight), path
    assert (logits(merged) - logits(network.model)).abs().max() < 1e-5
    assert not (export.path / "adapter").exists(), "an adapter would belong to the trained zeros"
    # Zeros are those of the chosen variants.
    masks = network.masks_of(choice)
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    zeros = {check.format: (check.zeros, check.pruned) for check in export.report.zeros}
    assert set(zeros.values()) == {(pruned, pruned)}
    assert zeros.keys() >= {"openvino", "onnx"}
    # And bytes are as they were counted.
    size = (export.path / "openvino" / "openvino_model.bin").stat().st_size
    assert found.best.model_bytes == pytest.approx(size, rel=0.02)
    assert export.report.mixture == open_subnet(run.search / "best.json").subnet.mixture
    card = (export.path / "README.md").read_text()
    assert "- layers chose zeros: " in card
    recipe = export.report.lineage.recipe
    assert recipe["variants"] == {"ratios": list(RATIOS)}
    assert recipe["search"]["layer_formats"] == list(FORMATS)


def test_the_plan_of_an_export_says_what_layers_chose(searched, tmp_path):
    options = ("--subnet", searched[0].search / "best.json", "--output", tmp_path / "export", "--dry-run")
    facts = json.loads(run_stage("export", *options, "--json", code=0).stdout)
    mixture = open_subnet(searched[0].search / "best.json").subnet.mixture
    assert facts["layers"] == [layer.model_dump() for layer in mixture.layers]
    told = run_stage("export", *options, code=0).stdout
    assert all(line.partition(":")[0] in told for line in mixture.words)


def test_each_layer_of_the_file_has_the_format_that_it_chose(run, tmp_path):
    document = tmp_path / "run" / "one.json"
    opened = open_mixed(run)
    choice = one_of_each(opened) | {"layers.0.format": 8, "layers.1.format": 4}
    write_document(
        document,
        describe_subnet(
            opened.adapter,
            choice,
            subnet_id="one",
            location=document.parent,
            metrics=None,
            provenance=None,
            mixture=opened.mixture,
        ),
    )
    export = export_subnet(document, ExportRequest(tmp_path / "export", ("openvino",), OWN_FORMAT, verify="off"))
    ir = openvino.Core().read_model(export.path / "openvino" / "openvino_model.xml")
    types = {
        module_path(node.get_friendly_name()): node.get_element_type().get_type_name()
        for node in ir.get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in ("i4", "i8", "u4")
    }
    for path, bits in opened.space.bits(choice).items():
        assert types[module_path(path)] == f"i{bits}", path


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"weight_format": "fp16"}, "chosen in their own formats, fp16"),
        ({"weight_format": OWN_FORMAT, "quantization": Quantization("balanced")}, "need no rounding"),
        ({"weight_format": OWN_FORMAT, "formats": ("peft",)}, "nothing is left to write"),
    ],
)
def test_an_export_that_would_round_again_is_refused(searched, tmp_path, options, problem):
    run, _ = searched
    request = ExportRequest(tmp_path / "export", **{"formats": ("openvino",), **options})
    with pytest.raises(UsageError, match=problem):
        export_subnet(run.search / "best.json", request)
    assert not (tmp_path / "export").exists()


def test_costs_are_those_of_each_choice(run):
    counts, grid = counter(run)
    opened = open_mixed(run)
    network = mixed_network(opened)
    for indices in (grid.maximal, grid.minimal, opened.space.encode(one_of_each(opened))):
        choice = opened.space.decode(indices)
        network.activate(choice)
        nonzero = sum(int(parameter.count_nonzero()) for parameter in network.model.parameters())
        factors = sum(
            int(part.count_nonzero()) for layer in network.layers.values() for part in (layer.lora_a, layer.lora_b)
        )
        assert counts.costs(indices).nonzero_params == nonzero - factors
        for cost in ("bytes", "nonzero_params"):
            field = {"bytes": "model_bytes", "nonzero_params": "nonzero_params"}[cost]
            assert counts.count(indices, cost) == getattr(counts.costs(indices), field)
    coarse, fine = counts.costs(grid.minimal).model_bytes, counts.costs(grid.maximal).model_bytes
    assert coarse < 0.9 * fine


def test_zeros_that_are_stored_take_the_same_bytes(run):
    counts, grid = counter(run, sparse_kernel=False, formats=())
    assert counts.costs(grid.minimal).model_bytes == counts.costs(grid.maximal).model_bytes


def test_what_is_saved_by_default(run):
    opened = open_mixed(run)

    def settled(**changes: object) -> str:
        settings = dataclasses.replace(SMALL_SEARCH, cost="auto", **changes)
        return str(settle(settings, BestRule(), opened.space, sparse=True).cost)

    assert settled(layer_formats=FORMATS) == "bytes"
    assert settled(ratios=RATIOS, sparse_kernel=True) == "bytes"
    assert settled(ratios=RATIOS) == "nonzero_params"
    assert settled() == "none"


def test_the_times_of_a_table_are_those_of_zeros_and_formats(run, tmp_path):
    opened = open_mixed(run)
    forms = LayerForms(mixed_network(opened))
    choice = one_of_each(opened)
    packed = invented_document(forms.every(), sparse_kernel=True, weight_format="int4")
    table = LatencyTable(packed, sha256="", where=tmp_path)
    table.check_covers(forms.every())
    assert table.predict_ms(forms.of(choice)) == pytest.approx(
        CONSTANT_MS + sum(invented_ms(form) for form in forms.of(choice).values())
    )
    # A stock kernel computes with zeros as with all else: one time for all shares.
    bare = sorted({dataclasses.replace(form, percent=0) for form in forms.every()})
    table = LatencyTable(invented_document(bare, weight_format="int4"), sha256="", where=tmp_path)
    table.check_covers(forms.every())
    assert {form.bits for form in bare} == {4, 8}
    conditions = packed.conditions
    assert conditions.of(LayerForm(8, 8, 0, 75, 8)).weight_format == "int8"
    assert conditions.of(LayerForm(8, 8, 0, 75, 8)).zeros == 0.75


def test_other_ratios_are_another_question(run):
    inputs = open_inputs(open_mixed(run), task=None)
    asked = {
        question_of(dataclasses.replace(MIXED, **changes), inputs, "task")
        for changes in ({}, {"ratios": (0.6,)}, {"layer_formats": ("int4",)}, {"ratios": (), "layer_formats": ()})
    }
    assert len(asked) == 4


def test_a_limit_that_nothing_keeps_is_refused_before_the_first_evaluation(run):
    with pytest.raises(NoCandidate, match="max_bytes"):
        search(run, dataclasses.replace(MIXED, max_bytes=1000), BestRule())
    assert not list(run.path.glob("**/journal.jsonl"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ratios": (0.9,)}, "no layer was pruned to 0.9"),
        ({"ratios": (0.4,)}, "no layer was pruned to 0.4"),
        ({"ratios": (0.655,)}, "whole percent"),
        ({"weight_format": "fp16"}, "layers choose among int8, int4, not fp16"),
    ],
)
def test_what_cannot_be_searched_is_refused(run, changes, problem):
    with pytest.raises(UsageError, match=problem):
        search(run, dataclasses.replace(MIXED, **changes), BestRule())


def test_ranks_beside_the_weights_mix_zeros_alone(tmp_path):
    run = mixed_run(tmp_path / "made", masked=False)
    with pytest.raises(UsageError, match="cannot be exported in integers"):
        open_mixed(run)
    document = run.path / "smallest.json"
    write_landmark(run, "smallest", document, ratios=RATIOS, formats=())
    export = export_subnet(document, ExportRequest(tmp_path / "export", ("openvino",), "fp32"))
    opened = open_mixed(run, formats=())
    network = mixed_network(opened)
    pruned = sum(int((~mask).sum()) for mask in network.masks_of(opened.space.minimal()).values())
    assert [(check.zeros, check.pruned) for check in export.report.zeros] == [(pruned, pruned)]
    assert all(not check.rejects for check in export.report.parity)


def test_a_dense_model_mixes_formats_alone(tmp_path):
    run = mixed_run(tmp_path / "made", sparse=False, masked=False)
    document = run.path / "middle.json"
    write_landmark(run, "middle", document, ratios=(), formats=FORMATS)
    export = export_subnet(document, ExportRequest(tmp_path / "export", ("hf",), OWN_FORMAT, verify="off"))
    network = mixed_network(opened := open_mixed(run, ratios=()))
    network.activate(opened.space.heuristic())
    merged = load_model(export.path / "model")
    for path, rounded in network.integers():
        assert torch.equal(merged.get_submodule(path).weight, rounded.weight), path


@pytest.mark.slow
def test_workers_find_what_one_process_finds(run, searched):
    settings = dataclasses.replace(MIXED, max_bytes=middle_bytes(run))
    search(run, settings, BestRule(), workforce=Workforce("processes", 2, 1))
    journals = [read_journal(each.search / "journal.jsonl") for each in (run, searched[0])]
    kept = [[(record.choice_idx, record.accuracy, record.model_bytes) for record in journal] for journal in journals]
    assert kept[0] == kept[1]


def test_lists_of_the_command_line():
    assert (parse_ratios(None), parse_ratios("none"), parse_ratios("0.6, 0.7")) == (None, (), (0.6, 0.7))
    assert (parse_layer_formats("none"), parse_layer_formats("int8, int4")) == ((), ("int8", "int4"))
    with pytest.raises(UsageError, match="no list of numbers"):
        parse_ratios("a")
    with pytest.raises(UsageError, match="layers cannot choose 'fp16'"):
        parse_layer_formats("int8,fp16")


def test_settings_say_whether_layers_choose():
    assert not SMALL_SEARCH.mixes
    assert MIXED.mixes


def test_uniform_mixtures_are_tried_and_keep_the_limit(searched):
    run, found = searched
    opened = open_mixed(run)
    every = uniform_mixtures(opened.space)
    choices = [opened.space.decode(indices) for indices in every]
    assert len(every) == 3 * 2
    for choice in choices:
        assert len({choice[f"layers.{layer}.sparsity"] for layer in range(2)}) == 1
        assert all(choice[group.id] == group.values[0] for group in opened.space.groups if group.kind == "rank")
    counts, _ = counter(run)
    asked = {record.choice_idx for record in found.explored}
    within = {indices for indices in every if counts.costs(indices).model_bytes <= middle_bytes(run)}
    assert within
    assert within <= asked
    assert uniform_mixtures(open_run(run).space) == ()
