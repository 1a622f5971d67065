"""A runtime of another package: found, listed, run and measured like our own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.toy_package import toy_package

TOY = '''
"""A runtime that counts: its model is the number in toy.txt, and a token is that much more than the last."""

from serve.runtimes.greedy_loop import greedy_loop
from serve.runtimes.runtime import RuntimeFacts, only_row
from shearling.errors import UsageError
from shearling.registry.runtimes import RuntimeEntry


class CountingRuntime:
    """See `serve.runtimes.runtime.Runtime`."""

    def __init__(self, deployment, options):
        if options.precision != "default":
            raise UsageError("integers have one precision", where=deployment.label, remedy="Leave --precision out")
        self._deployment = deployment
        self._step = int(deployment.model_file.read_text())
        self.facts = RuntimeFacts(
            runtime="Counting 0.1",
            provider="CPU",
            precision="integers",
            settings={"direction": deployment.properties.get("DIRECTION", "UP")},
            timing_source="monotonic clock around each step of serve.runtimes.greedy_loop",
        )

    def has_chat_template(self):
        return False

    def encode(self, prompt, *, chat):
        return [len(word) for word in prompt.split()]

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))

    def generate(self, rows, work):
        prompt = only_row(rows, deployment=self._deployment)
        return greedy_loop(lambda tokens: tokens[-1] + self._step, prompt, work, decoder=self)

    def close(self):
        pass


ENTRY = RuntimeEntry(
    name="toy",
    title="Counting",
    summary="a number, counted upwards",
    implementation="toy_toy:CountingRuntime",
    model_file="toy.txt",
    weights="toy.txt",
    properties=("DIRECTION",),
)
'''


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return toy_package(tmp_path_factory.mktemp("toy") / "site", group="shearling.runtimes", name="toy", code=TOY)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    (directory / "toy.txt").write_text("3")
    return directory


def serve(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_it_generates(environment: dict[str, str], model: Path) -> None:
    done = serve(environment, "generate", model, "--prompt", "four words", "--max-new-tokens", "4")
    assert (done.returncode, done.stdout) == (0, "8 11 14 17\n"), done.stderr
    assert "Counting 0.1, CPU, integers" in done.stderr


def test_it_is_measured_in_processes_of_its_own(environment: dict[str, str], model: Path) -> None:
    work = ("--prompt-tokens", "2", "--max-new-tokens", "8", "--repeats", "2", "--threads", "1", "--json")
    done = serve(environment, "bench", model, f"{model}@format=toy,DIRECTION=DOWN", *work)
    assert done.returncode == 0, done.stderr
    subjects = json.loads(done.stdout)["subjects"]
    assert [subject["deployment"]["format"] for subject in subjects] == ["toy", "toy"]
    assert [subject["facts"]["settings"]["direction"] for subject in subjects] == ["UP", "DOWN"]


def test_help_and_refusals_know_it(environment: dict[str, str], model: Path, tmp_path: Path) -> None:
    assert "|toy]" in serve(environment, "bench", "--help").stdout
    for arguments, code, words in (
        (("bench", f"{model}@STREAMS=1"), 2, "STREAMS is no property that toy knows"),
        (("bench", f"{model}@environment={tmp_path}"), 2, "Counting does not run in another environment here"),
        (("bench", model, "--device", "CUDA"), 4, "Counting runs on CPU here, not on CUDA"),
        (("bench", model, "--precision", "bf16"), 2, "integers have one precision"),
        (("bench", model, "--batch-size", "2", "--threads", "1"), 2, "Counting decodes one prompt at a time, not 2"),
        (("bench", model, "--format", "onnx"), 3, "holds toy; not onnx"),
        (("bench", model, "--format", "toys"), 2, "Did you mean 'toy'"),
        (("bench", tmp_path), 3, "no static_decoder.onnx, no toy.txt"),
    ):
        done = serve(environment, *arguments)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_a_broken_package_is_reported_like_any_fault(model: Path, tmp_path: Path) -> None:
    broken = toy_package(tmp_path / "site", group="shearling.runtimes", name="toy", code="from nowhere import ENTRY")
    done = serve(broken, "bench", model)
    assert (done.returncode, "Traceback" in done.stderr) == (4, False), done.stderr
    assert "another package's runtime 'toy' cannot be imported" in done.stderr
