"""No default dies: the commands `check`, `bench` and `generate` over number formats, precisions, threads and kernels.

All pairs of what may meet are there, which takes about a minute of processor time. The model is as wide as what
OpenVINO fuses into one node, see docs/latency.md: narrower ones never met what died.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from export.formats.onnx_genai import write_onnx_genai
from export.formats.openvino import write_openvino
from serve.bench.benchmark import find_deployments
from serve.bench.worker_process import WorkerProcess
from serve.runtimes.runtime import RunOptions
from serve.visitor.processor import read_processor
from shearling.model.checkpoint import save_model
from shearling.target import parse_target
from tests.support.deployments import write_onnx
from tests.support.environments import environment_seeing_ours
from tests.support.exported_files import stored_as
from tests.support.instruction_sets import KERNELS
from tests.support.onnxruntime_headers import needs_headers
from tests.support.serve_command import serve
from tests.support.tiny_models import tiny_tokenizer, wide_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it

FLOATS = ("fp32", "fp16", "bf16")
INTEGERS = ("int8", "int4", "int8-sparse", "int4-sparse")
FILES = (*FLOATS, *INTEGERS)
PRECISIONS = ("default", "fp32", "bf16")


@dataclass(frozen=True)
class Row:
    """One command.

    Attributes:
        files: of a check, the candidate and the reference.
        threads: None is the runtime's own number.
        kernels: None are the best ones; those that a processor lacks are replaced by these.
    """

    command: str
    files: tuple[str, ...]
    precision: str = "default"
    threads: int | None = None
    kernels: str | None = None

    def __str__(self) -> str:
        return "-".join(map(str, (self.command, *self.files, self.precision, self.threads, self.kernels)))


ROWS = (
    # What a check does unless it is told otherwise.
    Row("check", ("fp32", "fp16"), threads=1),
    Row("check", ("bf16", "int8"), threads=1),
    Row("check", ("int4", "int8-sparse"), threads=1, kernels="avx512"),
    Row("check", ("int4-sparse", "fp16"), "fp32", 2, "portable"),
    Row("bench", FILES),
    Row("bench", FLOATS, "bf16", 2),
    Row("bench", INTEGERS, "bf16", 1, "avx_vnni"),
    Row("bench", ("int8", "int8-sparse"), "fp32", 2, "avx2"),
    Row("generate", ("fp32",), "fp32", 1),
    Row("generate", ("bf16",), "fp32", 2),
    Row("generate", ("fp16",)),
    Row("generate", ("int8",), threads=1),
    Row("generate", ("int4",), "fp32", 2),
    Row("generate", ("int8-sparse",), "bf16", 2, "amx"),
    Row("generate", ("int4-sparse",), threads=2, kernels="avx2"),
    Row("generate", ("int4-sparse",), threads=1, kernels="avx512_bf16"),
)


def test_every_pair_of_settings_meets_in_a_row() -> None:
    met = {
        pair
        for row in ROWS
        for file in row.files
        for pair in itertools.combinations((row.command, file, row.precision, row.threads or 0, row.kernels), 2)
    }
    commands, threads = ("check", "bench", "generate"), (1, 2)
    wanted = {
        *itertools.product(commands, FILES),
        *itertools.product(FILES, PRECISIONS),
        *itertools.product(FILES, threads),
        *itertools.product(PRECISIONS, threads),
        *itertools.product(("bench", "generate"), PRECISIONS),
        *itertools.product(commands, threads),
    }
    assert wanted <= met
    assert {row.kernels for row in ROWS} >= set(KERNELS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of one model in every format, as commands take them."""
    root = tmp_path_factory.mktemp("defaults")
    for name in FILES:
        weight_format, _, kernel = name.partition("-")
        write_openvino(
            wide_model(), tiny_tokenizer(), root / name, stored_as(weight_format, kernel=kernel or "stock"), sparsity={}
        )
    write_onnx(wide_model(), root / "onnx")
    (root / "torch").mkdir()
    save_model(wide_model(), tiny_tokenizer(), root / "torch")
    return {name: str(root / name) for name in (*FILES, "onnx", "torch")}


def run(command: str, paths: list[str], *options: str, **environment: str) -> dict[str, Any]:
    """What a command tells as JSON; it lives, and measures with the settings that it was given."""
    quick = {
        "check": ("--budget", "1", "--prompt-tokens", "64", "--max-new-tokens", "4"),
        "bench": ("--repeats", "1", "--max-new-tokens", "4"),
        "generate": ("--max-new-tokens", "4", "--prompt", "Area man " * 30),
    }
    sides = [paths[0], "--against", paths[1]] if command == "check" else paths
    done = serve(command, *sides, *quick[command], *options, "--json", **environment)
    for words in ("died of", "measured with --", "Traceback"):
        assert words not in done.stderr, done.stderr
    # A check of a second is open, or of unlike files what it is.
    assert done.returncode in ((0, 1) if command == "check" else (0,)), done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def has_bf16() -> bool:
    return bool({"amx_bf16", "avx512_bf16"} & set(read_processor()[1]))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_openvino(models: dict[str, str], row: Row, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if row.precision == "bf16" and not has_bf16():
        pytest.skip("this processor has no bf16, which is refused")
    monkeypatch.setenv("SHEARLING_LATENCY_LOCK", str(tmp_path / "lock"))
    options = ["--precision", row.precision, *([] if row.threads is None else ["--threads", str(row.threads)])]
    environment = {} if row.kernels is None else {"SHEARLING_KERNEL": row.kernels}
    told = run(row.command, [models[name] for name in row.files], *options, **environment)
    if row.command == "check":
        assert set(told["outcomes"]) == {"ttft_s", "tpot_s"}
    facts = [item["facts"] for item in told["subjects"]] if row.command == "bench" else [told.get("facts")]
    executed = {item["precision"] for item in facts if item is not None}
    assert row.precision == "default" or executed <= {row.precision}


def test_other_runtimes(models: dict[str, str]) -> None:
    told = run("bench", [models["onnx"], models["torch"]], "--threads", "1")
    assert [item["facts"]["precision"] for item in told["subjects"]] == ["fp32", "fp32"]
    run("generate", [models["onnx"]], "--threads", "2")


@needs_headers
@pytest.mark.parametrize("kernel", ["stock", "sparse"])
def test_onnx_genai(tmp_path: Path, kernel: str) -> None:
    pytest.importorskip("onnxruntime_genai")
    write_onnx_genai(wide_model(), tiny_tokenizer(), tmp_path / "genai", stored_as("int8", kernel=kernel))
    told = run("bench", [str(tmp_path / "genai")], "--threads", "1" if kernel == "stock" else "2")
    assert told["subjects"][0]["deployment"]["format"] == "onnx-genai"


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


def test_no_huge_pages_is_true_of_operators_that_ask_for_them(models: dict[str, str]) -> None:
    target = models["int8-sparse"]
    if not huge_pages_of(target, huge_pages=True)[0]:
        pytest.skip("this system gives no huge pages, whoever asks (transparent_hugepage is never)")
    assert huge_pages_of(target, huge_pages=False) == (0, False)


def test_no_huge_pages_is_true_in_another_environment(models: dict[str, str], tmp_path: Path) -> None:
    target = f"{models['int8']}@environment={environment_seeing_ours(tmp_path / 'environment')}"
    assert huge_pages_of(target, huge_pages=True)[1]
    assert huge_pages_of(target, huge_pages=False) == (0, False)
