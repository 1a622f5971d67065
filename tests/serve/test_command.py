"""`python -m serve` as users run it: results, exit codes, artefacts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from serve.bench.benchmark_artefact import read_benchmark
from serve.bench.worker_process import WorkerProcess
from serve.runtimes.deployment import find_deployment
from serve.runtimes.runtime import RunOptions
from shearling.errors import DocumentInvalid, OutputExists, ResourceExhausted, RuntimeCrashed, UsageError
from shearling.target import Target
from tests.support.serve_command import QUICK, serve


@pytest.fixture(scope="module")
def measured(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bench") / "benchmark"
    done = serve(
        "bench",
        export / "openvino",
        export / "onnx",
        *QUICK,
        "--sessions",
        "2",
        "--precision",
        "fp32",
        "--output",
        output,
    )
    assert done.returncode == 0, done.stderr
    # A narrow column breaks a line between words.
    for word in ("Speed", "Cost", "openvino", "onnx", "fp32", "reference", "private"):
        assert word in done.stdout
    return output


def test_importing_and_help_touch_no_heavy_library() -> None:
    modules = (
        "serve.__main__, serve.bench.benchmark_artefact, serve.generate, "
        "serve.bench.comparison, serve.guard.regression, serve.guard.baseline, serve.bench.concurrency"
    )
    code = f"import sys, {modules}; print({{'torch', 'transformers', 'openvino', 'onnxruntime'}} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "set()"
    )
    assert "bench" in serve("--help").stdout


def test_a_check_imports_no_torch(export: Path, tmp_path: Path) -> None:
    told = tmp_path / "imported"
    for name in ("torch", "transformers"):
        (tmp_path / f"{name}.py").write_text(f"open({str(told)!r}, 'a').write({name!r})\nraise ImportError({name!r})\n")
    paths = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    sides = (export / "openvino", "--against", export / "onnx")
    done = serve("check", *sides, "--budget", "2", "--precision", "fp32", PYTHONPATH=paths)
    # Whatever the verdict of two runtimes is: there is one.
    assert done.returncode in (0, 1), done.stderr
    assert done.returncode == 0 or "latency" in done.stderr
    assert not told.exists(), told.read_text()
    # What it advises is there.
    known = set(re.findall(r"--[a-z][a-z-]+", serve("check", "--help", COLUMNS="200").stdout))
    assert set(re.findall(r"--[a-z][a-z-]+", done.stdout + done.stderr)) <= known


def test_generate_streams_text_and_nothing_else(export: Path) -> None:
    told = serve("generate", export, "--prompt", "Area man", "--max-new-tokens", "8", "--precision", "fp32", "--json")
    answer = json.loads(told.stdout)
    assert answer["status"] == "ok"
    assert answer["chat"] is True
    shown = serve("generate", export, "--prompt", "Area man", "--max-new-tokens", "8", "--precision", "fp32")
    assert shown.stdout == answer["text"] + "\n"
    assert "first after" in shown.stderr


def test_an_answer_that_cannot_be_written_is_said_once(export: Path) -> None:
    command = [sys.executable, "-m", "serve", "generate", str(export / "openvino"), "--prompt", "Area man"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("\n") == done.stderr.count("No space left on device") == 1


def test_a_benchmark_is_complete(measured: Path) -> None:
    benchmark = read_benchmark(measured)
    assert read_benchmark(measured / "benchmark.json") == benchmark
    order = [sample.subject for sample in benchmark.samples]
    assert order == [0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0]
    assert [sample.session for sample in benchmark.samples] == [0] * 6 + [1] * 6
    assert all(len(sample.gaps_s) == 3 for sample in benchmark.samples)
    first, second = benchmark.subjects
    assert (first.ratios, set(second.ratios)) == ({}, {"ttft_s", "tpot_s", "total_s"})
    for subject in benchmark.subjects:
        assert 0 < subject.memory_before_bytes < subject.peak_memory_bytes
        assert subject.load_s.samples == 2
        assert subject.metrics["tpot_s"].samples == 6
        assert set(subject.metrics) <= set(benchmark.definitions)
    assert benchmark.environment.cpu_flags
    assert benchmark.environment.versions["openvino"]


def test_a_worker_is_ours_whatever_lies_in_the_directory(export: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "__init__.py").write_text("raise SystemExit('this is another package')")
    monkeypatch.chdir(tmp_path)
    deployment = find_deployment(Target(export / "openvino"))
    with WorkerProcess(deployment, RunOptions(threads=1)) as worker:
        assert worker.load().facts.runtime.startswith("OpenVINO")


def test_an_existing_output_is_refused_before_anything_is_measured(export: Path, measured: Path) -> None:
    done = serve("bench", export, *QUICK, "--output", measured, "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (OutputExists.exit_code, "OutputExists")


def test_compare(measured: Path, tmp_path: Path) -> None:
    done = serve("compare", measured, measured / "benchmark.json", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["same_machine"] is True
    assert report["subjects"][1]["ratios"]["tpot_s"]["median"] == 1.0
    document = json.loads((measured / "benchmark.json").read_text())
    document["environment"]["machine_id"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    assert serve("compare", measured, other).returncode == UsageError.exit_code
    assert serve("compare", measured, other, "--allow-other-machine").returncode == 0
    other.write_text("{}")
    assert serve("compare", measured, other).returncode == DocumentInvalid.exit_code


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "DIR", "--prompt", ""], 2, "empty"),
        (["generate", "DIR", "--prompt", "caf\udce9"], 2, "not UTF-8"),
        (["generate", "DIR", "--prompt", "a", "--max-new-tokens", "0"], 2, "0 new tokens"),
        (["generate", "DIR", "--prompt", "a b c d e f g " * 60], 2, "exceed the context of 256"),
        (["generate", "DIR", "--prompt", "a", "--device", "GPU"], 4, "Install the Intel GPU driver"),
        (["generate", "DIR", "--prompt", "a", "--format", "onnx", "--device", "CUDA"], 4, "onnxruntime-gpu"),
        (["generate", "DIR/absent", "--prompt", "a"], 3, "no such directory"),
        (["generate", "DIR/onnx", "--prompt", "a", "--format", "torch"], 3, "holds onnx; not torch"),
        (["bench", "DIR", "--max-new-tokens", "1"], 2, "A decode needs 2 new tokens"),
        (["bench", "DIR", "--seed", "-1"], 2, "'--seed'"),
        (["load", "DIR", "--seed", str(2**32)], 2, "'--seed'"),
        (["bench", "DIR", "--repeats", "0"], 2, "--repeats: Input"),
        (["bench", "DIR", "--prompt-tokens", "0"], 2, "(found 0). Give another --prompt-tokens"),
        (["bench", "DIR", "--prompt-tokens", "250"], 2, "exceed the context"),
        (["bench", "DIR", "DIR", "--device", "gpu"], 4, "OpenVINO sees no GPU"),
        (["bench", "DIR", "--device", "CUDA"], 4, "CUDAExecutionProvider"),
        (["check", "DIR"], 2, "either --against DIR or --baseline FILE"),
        (["check", "DIR", "--against", "DIR", "--record"], 2, "nowhere to write"),
        (["check", "DIR", "--baseline", "DIR/absent.json"], 3, "no baseline here"),
        (["check", "DIR", "--baseline", "DIR/absent/b.json", "--record"], 2, "no file can be written here"),
        (["check", "DIR", "--baseline", "b.json", "--max-load-ratio", "2"], 2, "neither load times nor memory"),
        (["check", "DIR", "--baseline", "b.json", "--allow-other-tokens"], 2, "no tokens to compare"),
        (["check", "DIR", "--against", "DIR", "--allow-other-versions"], 2, "is of --baseline"),
        (["check", "DIR", "--against", "DIR", "--max-memory-ratio", "0"], 2, "not a positive number"),
        (["check", "DIR", "--against", "DIR@environment=DIR"], 4, "no virtual environment here"),
        (["check", "DIR", "--against", "DIR", "--junit", "DIR/absent/junit.xml"], 2, "no file can be written here"),
        (["check", "DIR", "--against", "DIR", "--junit", "/dev/null"], 2, "no file can be written here"),
        (["check", "DIR", "--against", "DIR", "--budget", "inf"], 2, "Give another --budget"),
        (["bisect", "DIR", "--versions", "2026.4.1"], 2, "cannot read the versions"),
        (["bisect", "DIR@environment=DIR", "--versions", "1,2"], 2, "the environments are made here"),
        (["bisect", "DIR", "--versions", "1,2", "--package", "--pre"], 2, "no name of a package"),
        (["load", "DIR@environment=DIR"], 2, "does not run in another environment here"),
        (["bench", "DIR", "--batch-size", "0"], 2, "--batch-size: Input"),
        (["bench", "DIR", "--no-such-option"], 2, "See: python -m serve bench --help"),
        (["bench", "DIR", "--trace", "DIR/absent.jsonl"], 2, "no such trace"),
        (["bench", "DIR@BAD-NAME=1"], 2, "cannot read the settings"),
        (["bench", "DIR@NO_SUCH_PROPERTY=1", "--threads", "1"], 2, "OpenVINO refuses"),
        (["check", "DIR", "--against", "DIR", "--max-ratio", "-1"], 2, "not a positive number"),
        (["bench", "DIR", "--format", "onx"], 2, "Did you mean 'onnx'"),
        (["bench", "DIR@format=onx"], 2, "Did you mean 'onnx'"),
        (["generate", "DIR@environment=DIR", "--prompt", "a"], 2, "text is generated in this process"),
        (["load", "DIR", "--concurrency", "many"], 2, "cannot read the numbers of requests"),
        (["forward", "DIR", "--blocks", "2"], 3, "a language model"),
        (["forward", "DIR", "--tokens", "257"], 2, "257 tokens exceed the context of 256"),
        (["forward", "DIR@format=onnx"], 2, "only OpenVINO is measured here, not onnx"),
    ],
)
def test_bad_requests(export: Path, arguments: list[str], code: int, words: str) -> None:
    done = serve(*(argument.replace("DIR", str(export)) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "bisect"])
def test_what_an_earlier_check_left_is_not_taken_for_this_one(export: Path, tmp_path: Path, command: str) -> None:
    """A job that shows the file tells of the refusal, not of the check before."""
    report = tmp_path / "latency.xml"
    report.write_text('<testsuites><testsuite name="earlier"/></testsuites>')
    more = ("--against", export) if command == "check" else ("--versions", "1,2")
    assert serve(command, export, *more, "--budget", "0", "--junit", report).returncode == 2
    (suite,) = ElementTree.parse(report).getroot()
    assert (suite.attrib["tests"], suite.attrib["errors"], suite.attrib["failures"]) == ("1", "1", "0")
    (error,) = suite.iter("error")
    assert "--budget" in error.attrib["message"]


def test_a_flipped_bit_is_exit_3(copy_of) -> None:
    root = copy_of()
    weights = root / "openvino" / "openvino_model.bin"
    data = bytearray(weights.read_bytes())
    data[100] ^= 8
    weights.write_bytes(data)
    done = serve("bench", root / "openvino", *QUICK)
    assert done.returncode == 3
    assert "openvino_model.bin" in done.stderr


def test_an_error_in_a_worker_keeps_its_class(copy_of) -> None:
    directory = copy_of("openvino")
    (directory / "openvino_tokenizer.xml").unlink()
    done = serve("bench", directory, *QUICK, "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (3, "ArtefactMissing")


def test_a_worker_that_hangs_is_reported_not_waited_for(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WorkerProcess(find_deployment(Target(export, format="onnx")), RunOptions()) as worker:
        worker.load()
        worker.stop()
        monkeypatch.setattr("serve.bench.worker_process.SILENCE_S", 0.25)
        with pytest.raises(RuntimeCrashed, match=r"hangs: asked to report, it said nothing for 0\.5 s"):
            worker.report()


def test_a_killed_worker_is_reported_not_waited_for(export: Path) -> None:
    deployment = find_deployment(Target(export, format="onnx"))
    with WorkerProcess(deployment, RunOptions()) as worker:
        worker.load()
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(ResourceExhausted, match="killed the measuring process"):
            worker.generate(((1, 2),), new_tokens=4)
