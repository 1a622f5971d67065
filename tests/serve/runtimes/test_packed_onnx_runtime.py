"""A packed ONNX model in every way to run it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.formats.onnx import MODEL_ONNX, write_onnx
from serve.bench.benchmark import run_benchmark
from serve.bench.workload import make_workload
from serve.runtimes.deployment import find_deployment
from serve.runtimes.runtime import Decoding, RunOptions, load_runtime
from shearling.errors import ArtefactCorrupt, DeviceUnavailable
from shearling.target import Target, parse_target
from tests.support.exported_files import stored_as
from tests.support.onnxruntime_headers import needs_headers
from tests.support.serve_command import run_serve
from tests.support.tiny_models import pruned_model, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torch.export warns of its own tree functions
FP32 = RunOptions(precision="fp32", threads=1)
PROMPT = [5, 6]
"""So short that bf16 weights meet activations in float32, and both kernels say the same tokens."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A directory with stock/ and sparse/ of one pruned bf16 model."""
    root = tmp_path_factory.mktemp("onnx")
    model, _ = pruned_model("llama_tied_gqa")
    for kernel in ("stock", "sparse"):
        write_onnx(model, tiny_tokenizer(), root / kernel, stored_as("bf16", kernel=kernel))
    return root


@needs_headers
def test_it_says_what_the_stock_file_says(packed):
    runtimes = {kernel: load_runtime(find_deployment(Target(packed / kernel)), FP32) for kernel in ("stock", "sparse")}
    answers = {
        kernel: runtime.generate([PROMPT], Decoding(max_new_tokens=16)).token_ids
        for kernel, runtime in runtimes.items()
    }
    assert answers["sparse"] == answers["stock"]
    assert runtimes["sparse"].facts.settings["custom_operators"] == "shearling"
    assert "custom_operators" not in runtimes["stock"].facts.settings


@needs_headers
def test_a_benchmark_runs_both(packed):
    targets = [Target(packed / "stock"), parse_target(f"{packed / 'sparse'}@format=onnx")]
    benchmark = run_benchmark(targets, options=RunOptions(threads=1), workload=make_workload(8, 4, repeats=1, warmup=0))
    assert set(benchmark.subjects[1].ratios) == {"ttft_s", "tpot_s", "total_s"}


@needs_headers
def test_the_command_generates(packed):
    done = run_serve(packed / "sparse")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@needs_headers
def test_damaged_bytes_are_refused_before_they_run(packed, tmp_path):
    broken = Path(shutil.copytree(packed / "sparse", tmp_path / "broken"))
    data = broken / f"{MODEL_ONNX}.data"
    content = bytearray(data.read_bytes())
    content[content.index(b"SHEARLNG") + 8] ^= 0xFF
    data.write_bytes(content)
    with pytest.raises(ArtefactCorrupt, match="a packed weight is corrupt"):
        load_runtime(find_deployment(Target(broken)), FP32)
    done = run_serve(broken)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr


def test_another_device_is_refused(packed):
    with pytest.raises(DeviceUnavailable, match="runs on CPUs, not on CUDA"):
        load_runtime(find_deployment(Target(packed / "sparse")), RunOptions(device="CUDA"))


def test_without_headers_the_error_says_what_is_missing(packed, tmp_path):
    done = run_serve(packed / "sparse", ONNXRUNTIME_INCLUDE=str(tmp_path))
    assert done.returncode == 4, done.stderr
    assert "libonnxruntime-dev" in done.stderr
    assert "ONNXRUNTIME_INCLUDE" in done.stderr
    stock = run_serve(packed / "stock", ONNXRUNTIME_INCLUDE=str(tmp_path))
    assert stock.returncode == 0, stock.stderr
