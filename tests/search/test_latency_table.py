"""The latency table: measured in a real runtime, used again where it fits, refused where it does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.request import OWN_FORMAT, ExportRequest
from export.stage import export_subnet
from search.describing import write_landmark
from search.latency.screen import summarise_table
from search.latency.stack import build_stack
from search.latency.stage import measure_latencies
from search.latency.stopwatch import Forward
from search.latency.table import LatencyTable
from search.layer_forms import LayerForm, LayerForms
from shearling.elastic.super_network import load_super_network
from shearling.elastic.weight_grid import GROUP_SIZE
from shearling.errors import ArtefactCorrupt, ArtefactMismatch, ModelUnsupported, OutputExists, UsageError
from shearling.kernel.openvino_extension import compile_ir
from shearling.run import Run
from tests.support.latency_tables import conditions, invented_document, invented_ms
from tests.support.mixed_runs import FORMATS, mixed_run
from tests.support.tiny_subnets import run_with_best

WIDTHS = {"feed_forward": [100, 64], "attention": [60, 30]}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_with_best(tmp_path_factory.mktemp("run"), width=WIDTHS)
    write_landmark(run, "largest", run.path / "largest.json")
    request = ExportRequest(output=run.path / "largest", formats=("openvino",), weight_format="int8", verify="off")
    export_subnet(run.path / "largest.json", request)
    return run


def measure(run: Run, output: Path, **changes: object):
    options = {"threads": 1, "tokens": 4, "seconds": 0.0, **changes}
    return measure_latencies(run, run.path / "largest", output=output, **options)


def test_a_table_is_measured_once_and_used_again_where_it_fits(exported: Run, tmp_path: Path) -> None:
    first = measure(exported, tmp_path / "latency")
    document, network = first.table.document, load_super_network(exported)
    forms = LayerForms(network)
    assert not first.reused
    assert [entry.form for entry in document.entries] == forms.every()
    assert len(document.entries) < len(forms.of(network.space.maximal())) * 2
    assert all(0 < entry.time.low_ms <= entry.time.ms <= entry.time.high_ms for entry in document.entries)
    assert (document.conditions.weight_format, document.conditions.threads, document.choice) == (
        "int8",
        1,
        network.space.maximal(),
    )
    # By its construction, the model that was measured is predicted exactly.
    assert first.table.predict_ms(forms.of(network.space.maximal())) == pytest.approx(document.whole.ms)
    written = (tmp_path / "latency" / "latency.json").read_bytes()
    assert measure(exported, tmp_path / "latency").reused
    assert (tmp_path / "latency" / "latency.json").read_bytes() == written
    data = summarise_table(first).data
    assert (data["entries"], data["reused"]) == (len(document.entries), False)
    with pytest.raises(OutputExists, match=r"does not fit: threads 1, not 2; tokens 4, not 8.*--force"):
        measure(exported, tmp_path / "latency", threads=2, tokens=8)
    assert not measure(exported, tmp_path / "latency", tokens=8, force=True).reused
    damaged = tmp_path / "latency" / "latency.json"
    damaged.write_text(damaged.read_text().replace('"ms"', '"Ms"', 1))
    with pytest.raises(ArtefactCorrupt):
        measure(exported, tmp_path / "latency", tokens=8)


def test_what_is_no_target_of_the_run_is_refused(exported: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="100000 tokens exceed the context of"):
        measure(exported, tmp_path / "latency", tokens=100_000)
    run = Run(shutil.copytree(exported.path, tmp_path / "run"))
    manifest = run.path / "largest" / "manifest.json"
    content = json.loads(manifest.read_text())

    def rewrite(**changes: object) -> None:
        manifest.write_text(json.dumps({**content, **changes}))

    rewrite(parents={**content["parents"], "super_adapter": "0" * 64})
    with pytest.raises(ArtefactMismatch, match="no sub-network of this run"):
        measure(run, run.latency)
    rewrite(details={key: value for key, value in content["details"].items() if key != "choice"})
    with pytest.raises(ArtefactMismatch, match="does not say which sub-network it holds"):
        measure(run, run.latency)
    (run.path / "largest" / "openvino").rename(tmp_path / "openvino")
    rewrite(files={name: entry for name, entry in content["files"].items() if not name.startswith("openvino")})
    with pytest.raises(ModelUnsupported, match="no OpenVINO model"):
        measure(run, run.latency)
    (tmp_path / "openvino").rename(run.path / "largest" / "openvino")
    rewrite(details={**content["details"], "merge": "separate"})
    with pytest.raises(ArtefactMismatch, match="another --merge"):
        measure(run, run.latency)


def test_a_dense_decoder_that_is_packed_is_timed_packed(tmp_path: Path) -> None:
    run = run_with_best(tmp_path, masked=False, sparse=False, width={"feed_forward": [100, 64]})
    write_landmark(run, "largest", run.path / "largest.json")
    for kernels, packed in (((), False), (("openvino",), True)):
        output = run.path / "largest" if packed else run.path / "stock"
        request = ExportRequest(output, ("openvino",), "int8", sparse_kernels=kernels, verify="off")
        export_subnet(run.path / "largest.json", request)
        found = measure_latencies(run, output, output=tmp_path / output.name, threads=1, tokens=4, seconds=0.0)
        conditions = found.table.document.conditions
        assert (conditions.sparse_kernel, conditions.zeros) == (packed, 0.0)


def test_layers_of_four_bits_are_timed_beside_an_export_that_has_none(tmp_path: Path) -> None:
    run = mixed_run(tmp_path, sparse=False, masked=False)
    write_landmark(run, "largest", tmp_path / "largest.json", formats=FORMATS)
    request = ExportRequest(run.path / "largest", ("openvino",), OWN_FORMAT, verify="off")
    export_subnet(tmp_path / "largest.json", request)
    document = measure(run, run.latency, formats=FORMATS).table.document
    assert (document.conditions.weight_format, document.conditions.group_size) == ("int8", GROUP_SIZE)
    assert {entry.bits for entry in document.entries} == {4, 8}


def test_ranks_that_are_merged_have_no_table(tmp_path: Path) -> None:
    run = run_with_best(tmp_path)
    with pytest.raises(UsageError, match="every sub-network of this run takes the same time"):
        measure(run, run.latency)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_format": "fp32"},
        {"weight_format": "fp16"},
        {"weight_format": "bf16"},
        {"weight_format": "int8"},
        {"weight_format": "int4", "group_size": 32},
        {"weight_format": "bf16", "sparse_kernel": True, "zeros": 0.5},
        {"weight_format": "int8", "sparse_kernel": True, "zeros": 0.5},
        {"weight_format": "int4", "group_size": 32, "sparse_kernel": True, "zeros": 0.5},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_a_stack_computes_the_sum_of_its_layers(changes: dict[str, object], tmp_path: Path) -> None:
    """Twice as many layers take other weights; the first ones stay, so that the stacks differ by the last layer."""
    import openvino

    case = conditions(tokens=3, **changes)
    form = LayerForm(48, 64, rank=4)
    outputs, sizes = [], []
    for copies in (1, 2):
        xml = tmp_path / f"{copies}.xml"
        stack = build_stack(form, case, copies=copies)
        openvino.save_model(stack, str(xml), compress_to_fp16=case.weight_format == "fp16")
        sizes.append(xml.with_suffix(".bin").stat().st_size)
        forward = Forward(xml, threads=1, tokens=3, packed=case.sparse_kernel)
        assert forward.sample_ms() > 0
        exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        compiled = compile_ir(xml, properties=exact)
        x = np.random.default_rng(1).standard_normal((1, 3, 64), dtype=np.float32)
        outputs.append(np.array(compiled([x])[0]))
    assert outputs[0].shape == (1, 3, 48)
    # One product and a rank beside it of standard normal numbers: its variance is in + rank * in.
    assert outputs[0].std() == pytest.approx((64 + 4 * 64) ** 0.5, rel=0.35)
    assert (outputs[1] - outputs[0]).std() == pytest.approx((64 + 4 * 64) ** 0.5, rel=0.35)
    # Every layer has weights of its own.
    assert sizes[1] > 1.8 * sizes[0]


def test_conditions_say_what_differs() -> None:
    one = conditions()
    assert one.differences(conditions()) == []
    assert one.differences(conditions(runtime="OpenVINO 2.0", zeros=0.5)) == [
        "runtime OpenVINO 2.0, not OpenVINO 1.0",
        "zeros 0.5, not 0.0",
    ]
    machine = one.machine.model_copy(update={"sha256": "1" * 64})
    assert "other features" in one.differences(conditions(machine=machine))[0]
    machine = one.machine.model_copy(update={"processor": "another"})
    assert one.differences(conditions(machine=machine)) == [f"machine another, not {one.machine.processor}"]


def test_a_prediction_is_the_constant_and_the_sum() -> None:
    forms = [LayerForm(8, 4), LayerForm(4, 8, 2)]
    table = LatencyTable(invented_document(forms), sha256="", where=Path("latency"))
    found = table.predict_ms({"a": forms[0], "b": forms[1], "c": forms[1]})
    assert found == pytest.approx(0.25 + invented_ms(forms[0]) + 2 * invented_ms(forms[1]))
    with pytest.raises(ArtefactMismatch, match=r"no time for \[9, 9\]$|no time for \[9, 9\]"):
        table.check_covers([*forms, dataclasses.replace(forms[0], out_features=9, in_features=9)])
