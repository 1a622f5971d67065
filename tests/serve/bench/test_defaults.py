"""No default dies: the guard's, bench's and generate's work with every number of threads, precision, format and kernel
that this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.formats.openvino import write_openvino
from serve.bench.benchmark import find_deployments
from serve.bench.worker_process import WorkerProcess
from serve.runtimes.deployment import Deployment, find_deployment
from serve.runtimes.known_crash import avoid_known_crash
from serve.runtimes.runtime import Precision, RunOptions
from shearling.errors import DeviceUnavailable
from shearling.target import Target, parse_target
from tests.support.environments import environment_seeing_ours
from tests.support.exported_files import stored_as
from tests.support.instruction_sets import KERNELS, available
from tests.support.serve_command import serve
from tests.support.tiny_models import pruned_model, tiny_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it

WORK = ((64, 16), (128, 64), (1, 2))
"""Prompt and new tokens: of check, of bench, and the least."""
FILES = ("float32", "int8", "sparse-int8")


@pytest.fixture(scope="module")
def models(export: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("defaults")
    model, _ = pruned_model("llama_tied_gqa")
    for name, kernel in (("int8", "stock"), ("sparse-int8", "sparse")):
        write_openvino(model, tiny_tokenizer(), root / name, stored_as("int8", kernel=kernel), sparsity={})
    return {"float32": export / "openvino", **{name: root / name for name in FILES[1:]}}


def work(deployment: Deployment, options: RunOptions) -> str:
    """What a check and a benchmark ask of one process; the precision that it computed in."""
    with WorkerProcess(deployment, options) as worker:
        report = worker.load()
        for prompt_tokens, new_tokens in WORK:
            rows = (tuple(range(3, 3 + prompt_tokens)),)
            worker.generate(rows, new_tokens=1)
            worker.settle()
            assert len(worker.generate(rows, new_tokens=new_tokens).generation.token_ids) == new_tokens
        assert worker.report().peak_bytes > 0
    return report.facts.precision


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["default", "fp32", "bf16"])
@pytest.mark.parametrize("name", FILES)
def test_openvino(models: dict[str, Path], name: str, precision: Precision, threads: int) -> None:
    options = RunOptions(precision=precision, threads=threads)
    deployment = find_deployment(Target(models[name]))
    try:
        [avoided], _ = avoid_known_crash([deployment], options)
        found = work(avoided, options)
    except DeviceUnavailable:
        # Refused with a reason, which is no death: this processor has no bf16, or the crash that is known.
        assert precision == "bf16"
        return
    assert precision in ("default", found)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("model_format", ["onnx", "torch"])
def test_other_runtimes(export: Path, model_format: str, threads: int) -> None:
    assert work(find_deployment(Target(export, format=model_format)), RunOptions(threads=threads)) == "fp32"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernels", KERNELS)
def test_every_kernel_of_this_machine(
    models: dict[str, Path], kernels: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not available(kernels):
        pytest.skip(f"this processor has no {kernels}")
    monkeypatch.setenv("SHEARLING_KERNEL", kernels)
    assert work(find_deployment(Target(models["sparse-int8"])), RunOptions(threads=threads)) == "fp32"


@pytest.mark.parametrize("threads", [("--threads", "1"), ("--threads", "2"), ()])
def test_generate(models: dict[str, Path], threads: tuple[str, ...]) -> None:
    done = serve("generate", models["float32"], "--prompt", "Area man " * 30, "--max-new-tokens", "8", *threads)
    assert done.returncode == 0, done.stderr


def huge_pages_of(target: str, *, huge_pages: bool) -> tuple[int, bool]:
    """Bytes in huge pages of a process that has generated, and whether the system may give it any."""
    options = RunOptions(threads=1, huge_pages=huge_pages)
    (deployment,) = find_deployments([parse_target(target)], options)
    with WorkerProcess(deployment, options) as worker:
        worker.load()
        worker.generate(((3, 4, 5),), new_tokens=2)
        worker.settle()
        status = Path(f"/proc/{worker._process.pid}/status").read_text()
        return worker.report().huge_bytes, "THP_enabled:\t0" not in status


def test_no_huge_pages_is_true_of_operators_that_ask_for_them(models: dict[str, Path]) -> None:
    target = str(models["sparse-int8"])
    if not huge_pages_of(target, huge_pages=True)[0]:
        pytest.skip("this system gives no huge pages, whoever asks (transparent_hugepage is never)")
    assert huge_pages_of(target, huge_pages=False) == (0, False)


def test_no_huge_pages_is_true_in_another_environment(models: dict[str, Path], tmp_path: Path) -> None:
    target = f"{models['float32']}@environment={environment_seeing_ours(tmp_path / 'environment')}"
    assert huge_pages_of(target, huge_pages=True)[1]
    assert huge_pages_of(target, huge_pages=False) == (0, False)
