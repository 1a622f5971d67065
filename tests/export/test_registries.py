"""Formats from outside the package, through the real command, and what a format is refused for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export.reporting.report import ExportReport
from shearling.artefact import open_artefact
from shearling.errors import UsageError
from shearling.registry.export_formats import EXPORT_FORMATS
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.strict_json import read_document
from tests.support.stage_commands import run_stage
from tests.support.tiny_subnets import run_with_best
from tests.support.toy_package import toy_package

ARCHIVE = '''
"""Export format `archive`: every weight in one compressed file of numpy."""
import numpy as np

from export.formats.export_format import FormatWriter
from shearling.registry.export_formats import ExportFormat


class Archive(FormatWriter):
    def write(self, subject, directory, storage):
        weights = {name: tensor.numpy() for name, tensor in subject.model.state_dict().items()}
        np.savez_compressed(directory / "weights.npz", **weights)

    def read_zeros(self, directory, shapes):
        weights = np.load(directory / "weights.npz")
        return {path: weights[f"{path}.weight"] == 0 for path in shapes}

    def usage(self, written):
        return 'import numpy as np\\n\\nweights = np.load("archive/weights.npz")'


ENTRY = ExportFormat(
    name="archive",
    summary="every weight in one file of numpy",
    directory="archive",
    implementation={"language_model": Archive},
)
'''

COARSE = '''
"""Number format `coarse`: float32 with nine bits of fraction, which compresses well."""
import numpy as np
import openvino

from export.number_formats.number_format import StoredIr
from shearling.registry.number_formats import Gate, NumberFormat


def store_openvino(ir):
    for node in ir.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f32 and len(node.shape) == 2:
            bits = np.ascontiguousarray(node.data).view(np.uint32)
            rounded = openvino.op.Constant(((bits + (1 << 13)) & ~np.uint32((1 << 14) - 1)).view(np.float32))
            rounded.set_friendly_name(node.get_friendly_name())
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(rounded.output(0))
    return StoredIr(ir)


ENTRY = NumberFormat(
    name="coarse",
    summary="float32 with nine bits of fraction",
    bits=18,
    gate=Gate(kl_mean=1e-2),
    implementation={"openvino": store_openvino},
)
'''


@pytest.fixture(scope="module")
def best(tmp_path_factory) -> Path:
    return run_with_best(tmp_path_factory.mktemp("registries")).path / "best.json"


def run_export(*arguments, environment):
    return run_stage("export", *arguments, environment=environment)


def test_a_format_from_outside_is_written_proven_and_on_the_card(best, tmp_path):
    environment = toy_package(tmp_path / "toy", group="shearling.export_formats", name="archive", code=ARCHIVE)
    output = tmp_path / "export"
    done = run_export("--subnet", best, "--formats", "archive,hf", "--output", output, environment=environment)
    assert done.returncode == 0, done.stderr
    report = read_document(output / "report.json", ExportReport)
    assert report.formats == ("archive", "hf")
    assert [(check.format, check.zeros == check.pruned > 0) for check in report.zeros] == [
        ("archive", True),
        ("model", True),
    ]
    assert 'np.load("archive/weights.npz")' in (output / "README.md").read_text()
    assert "archive/weights.npz" in open_artefact(output, kind="export").manifest.files
    assert "model.embed_tokens.weight" in np.load(output / "archive" / "weights.npz")
    assert "archive" in run_export("--help", environment=environment).stdout
    # It takes no number format, and has no sparse kernel.
    refused = run_export(
        *("--subnet", best, "--formats", "archive", "--weight-format", "int8", "--sparse-kernel", "archive"),
        environment=environment,
    )
    assert refused.returncode == 2
    assert "there is no sparse kernel for archive" in refused.stderr


def test_a_number_format_from_outside_is_stored_measured_and_judged_by_its_gate(best, tmp_path):
    environment = toy_package(tmp_path / "toy", group="shearling.number_formats", name="coarse", code=COARSE)
    output, options = tmp_path / "export", ("--subnet", best, "--weight-format", "coarse")
    done = run_export(*options, "--formats", "openvino", "--output", output, "--json", environment=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["weight_format"] == "coarse"
    exported = [check for check in report["parity"] if check["candidate"].startswith("openvino")]
    assert {check["precision"] for check in exported} == {"coarse"}
    assert all(check["parity"]["max_abs"] > 0 and check["gate"]["kl_mean"] == 1e-2 for check in exported)
    assert report["zeros"][0]["zeros"] == report["zeros"][0]["pruned"] > 0
    refused = run_export(*options, "--formats", "onnx", "--dry-run", environment=environment)
    assert refused.returncode == 2
    assert "onnx does not store coarse" in refused.stderr


def test_every_record_names_what_is_there():
    for entry in EXPORT_FORMATS:
        assert all(entry.load_for(head) for head in entry.implementation)
    for number_format in NUMBER_FORMATS:
        for name in number_format.implementation:
            assert EXPORT_FORMATS.get(name).takes_weight_format
            assert callable(number_format.load_for(name))
        assert number_format.computed_as is None or NUMBER_FORMATS.get(number_format.computed_as)
    with pytest.raises(UsageError, match="Did you mean 'int8'"):
        NUMBER_FORMATS.get("int9")


def test_ranks_kept_apart_are_refused_where_a_format_has_no_place_for_them(tmp_path):
    plain = run_with_best(tmp_path / "plain", masked=False).path / "best.json"
    environment = toy_package(tmp_path / "toy", group="shearling.export_formats", name="archive", code=ARCHIVE)
    refused = run_export("--subnet", plain, "--formats", "archive", environment=environment)
    assert refused.returncode == 2
    assert "archive has no place for ranks that are kept apart" in refused.stderr
