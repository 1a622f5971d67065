"""The stage with the format onnx-genai: gates, zeros and report as for the others, and what its command refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from export.request import ExportRequest
from export.stage import export_subnet
from serve.runtimes.deployment import find_deployment
from serve.runtimes.runtime import Decoding, RunOptions, load_runtime
from shearling.evaluation.given_model import find_given_model
from shearling.model.checkpoint import save_model
from shearling.run import Run
from shearling.target import Target
from tests.support.fused_models import FUSED
from tests.support.onnxruntime_headers import needs_headers
from tests.support.stage_commands import run_stage
from tests.support.tiny_models import tiny_tokenizer
from tests.support.tiny_subnets import run_with_best

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it


def run_of_fused(directory: Path, *, masked: bool) -> Run:
    (directory / "source").mkdir()
    save_model(FUSED["llama"](), tiny_tokenizer(), directory / "source")
    return run_with_best(directory, masked=masked)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of_fused(tmp_path_factory.mktemp("fused"), masked=True)


@needs_headers
def test_it_is_written_proved_and_run_beside_the_others(run: Run, tmp_path: Path) -> None:
    request = ExportRequest(
        output=tmp_path / "export",
        formats=("hf", "onnx", "onnx-genai"),
        weight_format="int8",
        sparse_kernels=("onnx-genai",),
        verify="strict",
    )
    exported = export_subnet(run.path / "best.json", request)
    report = exported.report
    assert {"onnx-genai", "onnx-genai, padded batch"} <= {check.candidate for check in report.parity}
    (zeros,) = [check for check in report.zeros if check.format == "onnx-genai"]
    assert zeros.zeros == zeros.pruned > 0
    assert report.kernels["onnx-genai"] == "sparse"
    assert "load_genai_model" in (exported.path / "README.md").read_text()
    assert find_given_model(Target(exported.path, format="onnx-genai")).path.name == "onnx-genai"
    deployments = [find_deployment(Target(exported.path, format=name)) for name in ("onnx-genai", "onnx")]
    assert [deployment.directory.name for deployment in deployments] == ["onnx-genai", "onnx"]
    pytest.importorskip("onnxruntime_genai")
    runtime = load_runtime(deployments[0], RunOptions(threads=1))
    assert len(runtime.generate([[5, 6, 7]], Decoding(max_new_tokens=8)).token_ids) == 8


def test_float32_passes_its_gate(run: Run, tmp_path: Path) -> None:
    request = ExportRequest(output=tmp_path / "export", formats=("onnx-genai",), verify="strict")
    checks = [check for check in export_subnet(run.path / "best.json", request).report.parity if check.precision]
    assert {"onnx-genai", "onnx-genai, padded batch"} <= {check.candidate for check in checks}
    assert all(check.parity.max_abs <= 1e-3 for check in checks)


def export_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_stage("export", *arguments, "--formats", "onnx-genai", "--json")


@pytest.mark.slow
def test_what_the_command_refuses(tmp_path: Path) -> None:
    for family, code, words in (("bloom", 2, "architecture bloom"), ("llama", 3, "heads are 12 wide")):
        run = run_with_best(tmp_path / family, family=family, masked=True)
        done = export_command("--subnet", run.path / "best.json", "--output", tmp_path / "out")
        assert done.returncode == code, done.stderr
        assert words in json.loads(done.stdout)["message"]
        assert "--formats onnx" in done.stdout
        assert not (tmp_path / "out").exists()
    (tmp_path / "plain").mkdir()
    plain = run_of_fused(tmp_path / "plain", masked=False)
    done = export_command("--subnet", plain.path / "best.json", "--output", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "no place for ranks that are kept apart" in done.stdout
    done = export_command(
        "--subnet",
        plain.path / "best.json",
        "--output",
        tmp_path / "out",
        "--merge",
        "dense",
        "--weight-format",
        "bf16",
    )
    assert done.returncode == 2, done.stderr
    assert "onnx-genai does not store bf16" in done.stdout
