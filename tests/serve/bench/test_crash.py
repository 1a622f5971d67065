"""What is said of a measuring process that died: from every signal, with the settings and a remedy."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from serve.bench.crash import (
    OF_THE_RUNTIME,
    REASONS,
    MeasuringProcessDied,
    describe_crash,
    other_settings,
)
from serve.bench.worker_process import WorkerProcess
from serve.runtimes.deployment import Deployment, find_deployment
from serve.runtimes.known_crash import signal_name
from serve.runtimes.runtime import RunOptions
from shearling.errors import ResourceExhausted, RuntimeCrashed
from shearling.target import Target

GENERATING = {"do": "generate", "rows": [[1] * 64], "new_tokens": 16}


@pytest.fixture
def deployment(export: Path) -> Deployment:
    return find_deployment(Target(export / "openvino"))


def crash(deployment: Deployment, code: int, **options: object) -> Exception:
    return describe_crash(
        code, deployment=deployment, options=RunOptions(**options), doing=GENERATING, facts=None, said="last words"
    )


@pytest.mark.parametrize("name", sorted(REASONS))
def test_every_signal_names_settings_reason_and_remedy(deployment: Deployment, name: str) -> None:
    error = crash(deployment, -getattr(signal, name), threads=1)
    assert error.exit_code == 4
    for words in (
        "1 x 64 prompt tokens and 16 new ones",
        "1 thread(s)",
        "precision default",
        REASONS[name],
        "last words",
    ):
        assert words in error.message
    assert error.remedy
    assert isinstance(error, ResourceExhausted if name == "SIGKILL" else MeasuringProcessDied)
    if name != "SIGKILL":
        assert (error.other is not None) == (name in OF_THE_RUNTIME)


@pytest.mark.parametrize(("name", "flag"), [("SIGFPE", "--precision fp32"), ("SIGSEGV", "--no-genai")])
def test_what_died_while_it_loaded_is_tried_by_what_its_signal_says(
    deployment: Deployment, name: str, flag: str
) -> None:
    loading = {"do": "load"}
    error = describe_crash(
        -getattr(signal, name),
        deployment=deployment,
        options=RunOptions(threads=1),
        doing=loading,
        facts=None,
        said=None,
    )
    assert isinstance(error, MeasuringProcessDied)
    assert error.other is not None
    assert error.other.flag == flag


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGRTMIN + 3])
def test_a_signal_that_nobody_foresaw_is_named(deployment: Deployment, number: int) -> None:
    assert str(signal_name(-number)) in crash(deployment, -number).message


def test_an_exit_code_is_no_signal(deployment: Deployment) -> None:
    error = crash(deployment, 7)
    assert isinstance(error, RuntimeCrashed)
    assert not isinstance(error, MeasuringProcessDied)
    assert "exit code 7" in error.message


def test_other_settings_change_one_thing_until_nothing_is_left(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.bench.crash.usable_cpus", lambda: (0, 1))
    assert other_settings(deployment, RunOptions(), loading=True).flag == "--no-genai"
    # Where GenAI takes no part, as of a lone file, there is nothing to leave out.
    alone = deployment.model_copy(update={"engine": "openvino"})
    assert other_settings(alone, RunOptions(), loading=True).flag == "--precision fp32"
    options, flags = RunOptions(threads=1), []
    while len(flags) < 3:
        found = other_settings(deployment, options, loading=False)
        changed = {name for name in RunOptions.model_fields if getattr(found.options, name) != getattr(options, name)}
        assert len(changed) == 1
        options = found.options
        flags.append(found.flag)
    assert flags == ["--precision fp32", "--threads 2", "--threads 1"]
    # ONNX Runtime computes as its file says, and one CPU has no second thread.
    monkeypatch.setattr("serve.bench.crash.usable_cpus", lambda: (0,))
    onnx = deployment.model_copy(update={"format": "onnx"})
    assert other_settings(onnx, RunOptions(threads=1), loading=False).flag == "--no-huge-pages"
    assert other_settings(onnx, RunOptions(threads=1, huge_pages=False), loading=False) is None


@pytest.mark.parametrize("name", ["SIGFPE", "SIGSEGV"])
def test_a_real_death_is_told(export: Path, name: str) -> None:
    options = RunOptions(threads=1, precision="fp32")
    with WorkerProcess(find_deployment(Target(export, format="onnx")), options) as worker:
        worker.load()
        os.kill(worker._process.pid, getattr(signal, name))
        with pytest.raises(
            MeasuringProcessDied, match=rf"{name} at 1 x 2 prompt tokens.*ONNX Runtime .*precision fp32 \(fp32\)"
        ):
            worker.generate(((1, 2),), new_tokens=4)


def test_half_an_answer_is_a_death(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nread request\nprintf '{\"import_s\": 0.'\nkill -KILL $$\n")
    python.chmod(0o755)
    (tmp_path / "model.xml").write_text("<net/>")
    lone = find_deployment(Target(tmp_path / "model.xml"), visits=True)
    visited = lone.model_copy(update={"engine": "openvino", "environment": tmp_path})
    with WorkerProcess(visited, RunOptions()) as worker, pytest.raises(ResourceExhausted, match="while it loaded"):
        worker.load()
