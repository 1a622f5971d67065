"""The crash of OpenVINO that is known: where it is expected, against what OpenVINO does; and all that is not it.

No machine of these tests need have AMX: what the processor says of itself is replaced. On one that has it, OpenVINO
itself is asked.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import openvino
import pytest

from shearling.errors import DeviceUnavailable
from shearling.kernel.loading import known_crash
from shearling.kernel.loading.known_crash import AVOIDED, HINT, DiesInBf16, is_affected, survivable
from shearling.kernel.openvino_extension import compile_ir
from tests.support.gated_blocks import write_gated_block

ONE = {"INFERENCE_NUM_THREADS": "1"}
RELEASE = "2026.4.1-22982-x"
WHOLE_ROWS = {**ONE, "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(2**64 - 1)}
DYING_GRAPHS: tuple[dict[str, Any], ...] = (
    {},
    {"stored": "f16"},
    {"stored": "bf16"},
    {"activation": "x*sigmoid"},
    {"width": 32, "inner": 32},
)
LIVING_GRAPHS: tuple[dict[str, Any], ...] = (
    {"stored": "i8"},
    {"width": 60},
    {"inner": 80},
    {"activation": "relu"},
    {"activation": "none"},
    {"joined": True},
)
DYING_PROPERTIES: tuple[dict[str, Any], ...] = (
    {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"},
    {"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 2},
    {"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": "AUTO"},
    {"INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "THROUGHPUT"},
)
LIVING_PROPERTIES: tuple[dict[str, Any], ...] = (
    {"INFERENCE_NUM_THREADS": 2},
    {"INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": "1"},
    {**ONE, HINT: "f32"},
    {**ONE, HINT: "f16"},
    {**ONE, "EXECUTION_MODE_HINT": "ACCURACY"},
)
CASES = [
    *((graph, ONE, True) for graph in DYING_GRAPHS),
    *((graph, ONE, False) for graph in LIVING_GRAPHS),
    *(({}, properties, True) for properties in DYING_PROPERTIES),
    ({"stored": "i8", "inner": 128}, WHOLE_ROWS, True),
    *(({}, properties, False) for properties in LIVING_PROPERTIES),
]
COMPILING = "import sys, openvino; openvino.Core().compile_model(sys.argv[1], 'CPU', eval(sys.argv[2]))"


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_crash, "_processor_has_amx", lambda: True)
    for name in known_crash.ISA_LIMITS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize(("graph", "properties", "dies"), CASES)
def test_what_would_die_computes_in_float32_and_nothing_else_changes(
    tmp_path: Path, graph: dict[str, Any], properties: dict[str, Any], dies: bool
) -> None:
    content = write_gated_block(tmp_path, **graph).read_bytes()
    expected = {**properties, HINT: "f32"} if dies else properties
    assert survivable(content, properties, release=RELEASE) == expected


@pytest.mark.skipif(not known_crash._has_amx(), reason="OpenVINO lives on this processor: it has no AMX")
@pytest.mark.parametrize(("graph", "properties", "dies"), CASES)
def test_openvino_dies_where_it_is_expected(
    tmp_path: Path, graph: dict[str, Any], properties: dict[str, Any], dies: bool
) -> None:
    """And lives where it is not: otherwise somebody computes more slowly for nothing."""
    xml = write_gated_block(tmp_path, **graph)
    done = subprocess.run([sys.executable, "-c", COMPILING, str(xml), repr(properties)], check=False)
    assert done.returncode == (-8 if dies and is_affected(openvino.__version__) else 0)


@pytest.mark.usefixtures("amx")
def test_devices_processors_and_releases_without_it_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_gated_block(tmp_path).read_bytes()
    assert survivable(content, ONE, device="GPU", release=RELEASE) == ONE
    for release, affected in (("2024.3.0", False), ("2024.4.0", True), ("2026.3.1", True), ("2026.5.0", False)):
        assert (survivable(content, ONE, release=release) != ONE) is affected
    assert not is_affected("")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert survivable(content, ONE, release=RELEASE) == ONE
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert survivable(content, ONE, release=RELEASE) != ONE
    monkeypatch.setattr(known_crash, "_processor_has_amx", lambda: False)
    assert survivable(content, ONE, release=RELEASE) == ONE


@pytest.mark.usefixtures("amx")
def test_two_cpus_of_one_core_are_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write_gated_block(tmp_path / "model").read_bytes()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    for siblings, thread in ((("0-1", "0-1"), True), (("0", "1"), False)):
        for cpu, listed in enumerate(siblings):
            (tmp_path / str(cpu)).write_text(listed)
        monkeypatch.setattr(known_crash, "CORE", str(tmp_path / "{}"))
        assert (survivable(content, {}, release=RELEASE) != {}) is thread


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("asked", ["bf16", openvino.Type.bf16])
def test_bf16_that_was_asked_for_is_refused_not_replaced(tmp_path: Path, asked: Any) -> None:
    xml = write_gated_block(tmp_path)
    with pytest.raises(DiesInBf16, match="dies here of SIGFPE"):
        survivable(xml.read_bytes(), {**ONE, HINT: asked}, release=RELEASE)
    with pytest.raises(DeviceUnavailable, match=r"dies here of SIGFPE.*two threads"):
        compile_ir(xml, properties={**ONE, HINT: asked})


@pytest.mark.usefixtures("amx")
def test_what_is_compiled_here_computes_in_float32_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xml = write_gated_block(tmp_path)
    for _ in range(2):
        assert compile_ir(xml, properties=ONE).get_property(HINT) == openvino.Type.f32
    assert capsys.readouterr().err.count(AVOIDED) == 1


def test_a_text_that_is_no_graph_is_left_to_openvino(amx: None) -> None:
    assert survivable(b"<net><layers", ONE, release=RELEASE) == ONE
    loop = '<layer id="{0}" name="{0}" type="{1}"><input><port id="0"/><port id="1"/></input><output><port id="2"/>'
    layers = "".join(
        f"{loop.format(number, kind)}</output></layer>" for number, kind in enumerate(["MatMul", "Multiply"])
    )
    edges = "".join(
        f'<edge from-layer="{source}" from-port="2" to-layer="{target}" to-port="{port}"/>'
        for source, target, port in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1))
    )
    strange = f"<net><layers>{layers}</layers><edges>{edges}</edges></net>".encode()
    assert survivable(strange, ONE, release=RELEASE) == ONE
