"""The crash that is known is avoided among models that are compared: the one that would die computes in float32, and so
does what it is compared with, if that would die in its release.

No machine of these tests need have AMX: what the processor says of itself is replaced, the rest is real.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.bench.benchmark import run_benchmark
from serve.bench.workload import make_workload
from serve.runtimes.deployment import Deployment, find_deployment
from serve.runtimes.known_crash import AVOIDED, avoid_known_crash
from serve.runtimes.runtime import RunOptions, load_runtime
from shearling.errors import DeviceUnavailable
from shearling.kernel.loading import known_crash
from shearling.target import Target, parse_target
from tests.support.gated_blocks import gated_decoder, write_gated_block

DEFAULT = RunOptions(threads=1)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose blocks OpenVINO fuses."""
    return gated_decoder(tmp_path_factory)


@pytest.fixture
def deployment(gated: Path) -> Deployment:
    return find_deployment(Target(gated))


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_crash, "_processor_has_amx", lambda: True)
    monkeypatch.setattr("serve.runtimes.known_crash.installed_version", lambda *_: "2026.4.1")


@pytest.mark.usefixtures("amx")
def test_the_default_computes_in_float32(deployment: Deployment) -> None:
    in_float32 = deployment.model_copy(update={"properties": {"INFERENCE_PRECISION_HINT": "f32"}})
    assert avoid_known_crash([deployment], DEFAULT) == ([in_float32], AVOIDED)


@pytest.mark.usefixtures("amx")
def test_where_anything_differs_nothing_changes(
    deployment: Deployment, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in (
        RunOptions(threads=2),
        RunOptions(threads=1, precision="fp32"),
        RunOptions(threads=1, device="GPU"),
    ):
        assert avoid_known_crash([deployment], options) == ([deployment], None)
    for settings in ("INFERENCE_NUM_THREADS=2", "INFERENCE_PRECISION_HINT=f32"):
        given = find_deployment(parse_target(f"{deployment.directory}@{settings}"))
        assert avoid_known_crash([given], DEFAULT) == ([given], None)
    write_gated_block(tmp_path, stored="i8")
    for target in (Target(tmp_path), Target(export / "openvino"), Target(export / "onnx")):
        other = find_deployment(target)
        assert avoid_known_crash([other], DEFAULT) == ([other], None)
    monkeypatch.setattr("serve.runtimes.known_crash.installed_version", lambda *_: "2026.5.0")
    assert avoid_known_crash([deployment], DEFAULT) == ([deployment], None)


@pytest.mark.usefixtures("amx")
def test_two_releases_compute_alike(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one of them would die; the other, left in bf16, would be the faster for it."""
    monkeypatch.setattr(
        "serve.runtimes.known_crash.installed_version", lambda _, place: "2024.3.0" if place else "2026.4.1"
    )
    older = deployment.model_copy(update={"environment": Path("older")})
    in_float32 = {"properties": {"INFERENCE_PRECISION_HINT": "f32"}}
    assert avoid_known_crash([older, deployment], DEFAULT) == (
        [older.model_copy(update=in_float32), deployment.model_copy(update=in_float32)],
        AVOIDED,
    )
    assert avoid_known_crash([older, older], DEFAULT) == ([older, older], None)
    # What was asked for by name stays.
    in_bf16 = older.model_copy(update={"properties": {"INFERENCE_PRECISION_HINT": "bf16"}})
    assert avoid_known_crash([in_bf16, deployment], DEFAULT)[0][0] == in_bf16


def test_without_amx_nothing_changes(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_crash, "_processor_has_amx", lambda: False)
    assert avoid_known_crash([deployment], DEFAULT) == ([deployment], None)


@pytest.mark.usefixtures("amx")
def test_one_core_is_one_thread_and_so_are_streams_of_one(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_crash, "_cores", lambda: 2)
    assert avoid_known_crash([deployment], RunOptions())[1] is None
    assert avoid_known_crash([deployment], RunOptions(hint="throughput"))[1] == AVOIDED
    monkeypatch.setattr(known_crash, "_cores", lambda: 1)
    assert avoid_known_crash([deployment], RunOptions())[1] == AVOIDED


@pytest.mark.usefixtures("amx")
def test_bf16_that_was_asked_for_is_refused_not_replaced(deployment: Deployment) -> None:
    with pytest.raises(DeviceUnavailable, match=r"dies here of SIGFPE.*Use two threads"):
        avoid_known_crash([deployment], RunOptions(threads=1, precision="bf16"))
    own = find_deployment(parse_target(f"{deployment.directory}@INFERENCE_PRECISION_HINT=bf16"))
    with pytest.raises(DeviceUnavailable, match="dies here of SIGFPE"):
        avoid_known_crash([own], DEFAULT)


@pytest.mark.usefixtures("amx")
def test_that_file_alone_changes_and_the_benchmark_says_so(gated: Path, export: Path) -> None:
    """What is measured beside it may take no precision, as a GGUF file, or compute more slowly then."""
    targets = [Target(gated), Target(export / "onnx")]
    benchmark = run_benchmark(targets, options=DEFAULT, workload=make_workload(8, 2, repeats=1, warmup=0))
    assert (benchmark.options.precision, benchmark.changes) == ("default", (AVOIDED,))
    changed, other = benchmark.subjects
    assert changed.facts.precision == "fp32"
    assert [subject.deployment.properties for subject in (changed, other)] == [{"INFERENCE_PRECISION_HINT": "f32"}, {}]


@pytest.mark.usefixtures("amx")
def test_a_runtime_in_this_process_changes_too(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = load_runtime(deployment, DEFAULT)
    assert runtime.facts.precision == "fp32"
    assert capsys.readouterr().err.count(AVOIDED) == 1
    runtime.close()
