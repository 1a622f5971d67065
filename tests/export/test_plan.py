"""What a plan refuses before any work: destinations, rows that are gone, groups that no layer has."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from export.__main__ import export as command
from export.formats.classifier import OnnxClassifier
from export.formats.onnx import OnnxDecoder
from export.formats.onnx_genai import OnnxGenAIDecoder
from export.plan import plan_frozen, plan_subnet
from export.quantization.settings import Quantization
from export.request import ExportRequest
from shearling.artefact import open_artefact, write_artefact
from shearling.elastic.subnet import describe_subnet, open_subnet
from shearling.errors import (
    ArtefactCorrupt,
    ExportUnavailable,
    MergeRefused,
    ModelUnsupported,
    OutputExists,
    UsageError,
)
from shearling.model.checkpoint import save_model
from shearling.run import Run
from shearling.strict_json import write_document
from tests.support.tiny_models import tiny_tokenizer, wide_model
from tests.support.tiny_subnets import run_with_best


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return run_with_best(tmp_path_factory.mktemp("made"), masked=True)


@pytest.fixture
def run(made, tmp_path):
    return Run(shutil.copytree(made.path, tmp_path / "run"))


def request_for(path, **options):
    return ExportRequest(**{"output": path, "formats": ("openvino",), **options})


@pytest.mark.parametrize("name", ["task", "base", "sparse", "super_adapter"])
def test_force_replaces_no_other_artefact_of_the_run(run, name):
    request = request_for(run.path / name, force=True)
    for plan, source in ((plan_frozen, run.sparse), (plan_subnet, run.path / "best.json")):
        with pytest.raises(OutputExists) as caught:
            plan(source, request)
        assert (caught.value.exit_code, caught.value.where) == (2, str(run.path / name))
    open_artefact(run.sparse, kind="sparse")


def test_force_removes_no_export_that_holds_what_is_exported(made, tmp_path):
    with write_artefact(tmp_path / "export", kind="export") as draft:
        shutil.copytree(made.path, draft.directory / "run")
    run, request = Run(tmp_path / "export" / "run"), request_for(tmp_path / "export", force=True)
    for plan, source in ((plan_frozen, run.sparse), (plan_subnet, run.path / "best.json")):
        with pytest.raises(OutputExists, match="holds what the output is made from"):
            plan(source, request)


@pytest.mark.parametrize(
    ("lost", "options"),
    [
        ("validation.jsonl", {"weight_format": "int8"}),
        ("validation.jsonl", {"weight_format": "int4", "quantization": Quantization("fast")}),
        ("train.jsonl", {"weight_format": "int4"}),
        ("train.jsonl", {"weight_format": "int4", "verify": "off", "quantization": Quantization(dataset=("task",))}),
    ],
)
def test_rows_that_the_manifest_lists_must_be_there(run, tmp_path, lost, options):
    (run.task / lost).unlink()
    request = request_for(tmp_path / "export", **options)
    for plan, source in ((plan_frozen, run.sparse), (plan_subnet, run.path / "best.json")):
        with pytest.raises(ArtefactCorrupt, match="missing") as caught:
            plan(source, request)
        assert (caught.value.exit_code, caught.value.where) == (3, str(run.task / lost))
    # Without a task the fixed text stands for its rows, which is said to be so.
    shutil.rmtree(run.task)
    plan_frozen(run.sparse, request_for(tmp_path / "export", weight_format="int8"))


def test_integers_without_zeros_have_no_mask_to_merge_under(tmp_path):
    run = run_with_best(tmp_path, sparse=False, masked=False, quantization={"bits": 8})
    request = request_for(tmp_path / "export", merge="masked")
    for approximate in (False, True):
        with pytest.raises(MergeRefused, match="--merge separate") as caught:
            plan_subnet(run.path / "best.json", replace(request, allow_approximate=approximate))
        assert caught.value.exit_code == 2
    assert plan_subnet(run.path / "best.json", replace(request, merge=None)).merge.mode == "separate"


def test_a_group_that_no_layer_has_is_refused(tmp_path):
    """The frozen model has 64 and 96 columns, the sub-network 64 and 80."""
    save_model(wide_model(), tiny_tokenizer(), tmp_path / "source")
    run = run_with_best(tmp_path, width={"feed_forward": [96, 80]})
    grouped = {size: Quantization(group_size=size) for size in (32, 64)}
    request = request_for(tmp_path / "export", weight_format="int4", quantization=grouped[64])
    with pytest.raises(
        UsageError, match=r"a group of 64 does not divide the 96 inputs of model\.layers\.0\.mlp"
    ) as caught:
        plan_frozen(run.sparse, request)
    assert (caught.value.where, caught.value.remedy) == ("--group-size", "Give 32")
    request = replace(request, quantization=grouped[32])
    assert plan_frozen(run.sparse, request).quantization.group_size == 32
    opened, document = open_subnet(run.path / "best.json"), run.path / "other.json"
    space = opened.space

    def describe(choice):
        facts = {"subnet_id": "other", "location": run.path, "metrics": None, "provenance": None}
        write_document(document, describe_subnet(opened.adapter, choice, **facts))

    describe(space.maximal())
    assert plan_subnet(document, request).quantization.group_size == 32
    describe({**space.maximal(), **{group.id: 80 for group in space.width_groups}})
    with pytest.raises(UsageError, match="a group of 32 does not divide the 80 inputs"):
        plan_subnet(document, request)


def test_algorithms_that_run_in_openvino_need_a_model_that_it_takes(run, tmp_path, monkeypatch):
    request = request_for(tmp_path / "export", weight_format="int4", quantization=Quantization(scale_estimation=True))
    request = replace(request, formats=("onnx",))
    plans = ((plan_frozen, run.sparse), (plan_subnet, run.path / "best.json"))
    for plan, source in plans:
        assert plan(source, request).quantization.algorithms == ("scale_estimation",)
    monkeypatch.setattr("shearling.model.export_support._configurations", lambda _: {})
    for plan, source in plans:
        with pytest.raises(ExportUnavailable, match="does not export this architecture") as caught:
            plan(source, request)
        assert caught.value.exit_code == 4
        plan(source, replace(request, quantization=Quantization()))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"weight_format": "int8", "gptq": True}, "--gptq"),
        ({"weight_format": "int4", "quantization": "best", "awq": True}, "--awq"),
        ({"weight_format": "int4", "scale_estimation": True, "dataset": "none.txt"}, "--dataset"),
        ({"weight_format": "int4", "formats": "hf", "scale_estimation": True}, "--scale-estimation"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(run, options, where):
    for source in ({"base": run.sparse}, {"subnet": run.path / "best.json"}):
        with pytest.raises(UsageError) as caught:
            command(**source, **{"formats": "openvino", **options}, dry_run=True)
        assert (caught.value.exit_code, caught.value.where) == (2, where)
        planned = command(**source, formats="openvino", weight_format="int4", gptq=True, num_samples=4, dry_run=True)
        assert planned.data["quantization"] == "NNCF's GPTQ"


def test_awq_scales_no_ranks_that_stay_apart(tmp_path):
    run = run_with_best(tmp_path, sparse=False, masked=False)
    request = request_for(tmp_path / "export", weight_format="int4", merge="separate")
    for algorithms in ({"awq": True}, {"awq": True, "gptq": True}):
        with pytest.raises(UsageError, match="ranks that stay apart would not be scaled") as caught:
            plan_subnet(run.path / "best.json", replace(request, quantization=Quantization(**algorithms)))
        assert (caught.value.exit_code, caught.value.where) == (2, "--awq")
    plan_subnet(run.path / "best.json", replace(request, quantization=Quantization(scale_estimation=True)))


def test_angles_that_depend_on_the_length_of_a_text_are_refused_in_onnx(tmp_path):
    model = wide_model()
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    save_model(model, tiny_tokenizer(), tmp_path / "source")
    run = run_with_best(tmp_path)
    request = request_for(tmp_path / "export", formats=("openvino", "onnx"))
    for plan, source in ((plan_frozen, run.sparse), (plan_subnet, run.path / "best.json")):
        with pytest.raises(ModelUnsupported, match="of the kind dynamic") as caught:
            plan(source, request)
        assert (caught.value.exit_code, caught.value.where) == (3, str(run.sparse / "config.json"))
        plan(source, replace(request, formats=("openvino",)))


@pytest.mark.parametrize("writer", [OnnxDecoder, OnnxGenAIDecoder, OnnxClassifier])
@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}}, "dynamic"),
        ({"rope_scaling": {"type": "su"}}, "su"),
    ],
)
def test_every_spelling_of_such_angles_is_known(tmp_path, writer, config, kind):
    with pytest.raises(ModelUnsupported, match=f"of the kind {kind},"):
        writer().check_config(config, where=tmp_path)
    for others in ({}, {"rope_scaling": None}, {"rope_parameters": {"rope_type": "yarn"}}):
        writer().check_config(others, where=tmp_path)


def test_nothing_that_is_exported_as_it_is_can_be_approximate(run, tmp_path):
    with pytest.raises(UsageError, match="no merge is approximate"):
        plan_frozen(run.sparse, request_for(tmp_path / "export", allow_approximate=True))
