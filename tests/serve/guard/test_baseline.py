"""A process that dies with the settings of a baseline, in a real runtime: others are tried, and the history knows."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.guard.baseline import FIRST_BLOCKS, check_baseline
from serve.guard.machine_lock import measuring_alone
from serve.guard.regression import Verdict, guard_workload
from serve.guard.telling import how_to_settle
from serve.runtimes.runtime import RunOptions
from shearling.errors import DocumentInvalid, RuntimeCrashed, UsageError
from shearling.kernel.loading import known_crash
from shearling.target import Target, parse_target
from tests.support.environments import environment_seeing_ours
from tests.support.gated_blocks import gated_decoder

DIES_WITH_ONE_THREAD = """
import os, signal, sys
# What measures is told where its modules are; what asks for those of the environment is not.
if sys.orig_argv[-1].endswith("serve") and os.environ.get("OMP_NUM_THREADS") == "1":
    os.kill(os.getpid(), signal.SIGFPE)
"""


@pytest.fixture(scope="module")
def recorded(export: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("recorded") / "baseline.json"
    assert check_alone(export, path).outcome == "pass"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def recorded_values(history: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = history["entries"][0]["values"]
    return found


def check_alone(export: Path, path: Path, *, max_ratio: float = 20.0, budget_s: float = 50.0) -> Verdict:
    return check_baseline(
        parse_target(f"{export}@format=onnx"),
        path,
        max_ratio=max_ratio,
        options=RunOptions(threads=1, huge_pages=False),
        workload=guard_workload(8, 4, budget_s=budget_s),
        record=True,
    )[0]


def test_two_checks_at_once_are_both_recorded(export: Path, tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = tmp_path / "baseline.json"
    waiting = threading.Thread(target=check_alone, args=(export, path))
    with measuring_alone():
        waiting.start()
        # What the one that measures records while the other waits.
        path.write_text(json.dumps(recorded))
    waiting.join()
    assert len(json.loads(path.read_text())["entries"]) == 2


def test_what_decides_nothing_is_not_recorded(export: Path, tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = tmp_path / "baseline.json"
    (entry,) = recorded["entries"]
    days = [
        {**entry, "values": {k: [scale * v for v in own] for k, own in entry["values"].items()}} for scale in (0.5, 2)
    ]
    path.write_text(json.dumps({**recorded, "entries": days}))
    verdict = check_alone(export, path, max_ratio=1.05, budget_s=15.0)
    assert verdict.outcome == "inconclusive"
    assert len(json.loads(path.read_text())["entries"]) == 2
    # It used its time, and no other would change what the days say.
    assert verdict.blocks > FIRST_BLOCKS
    assert verdict.settling_budget_s is None
    assert "no longer one would settle it" in how_to_settle(verdict)


def test_too_short_a_measurement_neither_begins_a_history_nor_is_one(
    export: Path, tmp_path: Path, recorded: dict[str, Any]
) -> None:
    path = tmp_path / "baseline.json"
    verdict = check_alone(export, path, budget_s=0.01)
    assert verdict.outcome == "inconclusive"
    assert not path.exists()
    assert verdict.settling_budget_s is not None
    assert how_to_settle(verdict).endswith(f"run it anew with --budget {verdict.settling_budget_s:g}")
    (entry,) = recorded["entries"]
    short = {**entry, "values": {name: values[:3] for name, values in entry["values"].items()}}
    path.write_text(json.dumps({**recorded, "entries": [entry, short]}))
    with pytest.raises(UsageError, match="has 3 blocks, fewer than 9"):
        check_alone(export, path)


def test_a_history_of_another_runtime_is_refused(export: Path, tmp_path: Path, recorded: dict[str, Any]) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({**recorded, "runtime": "ONNX Runtime 0.1"}))
    with pytest.raises(UsageError, match=r"other versions: ONNX Runtime 0\.1 -> ONNX Runtime"):
        check_alone(export, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "bf16"}, "was measured in bf16; this ran in fp32"),
        ({"properties": {"KV_CACHE_PRECISION": "u8"}}, "was measured in fp32, KV_CACHE_PRECISION=u8; this ran in fp32"),
    ],
)
def test_a_history_of_other_properties_is_not_compared(
    export: Path, tmp_path: Path, recorded: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({**recorded, **change}))
    with pytest.raises(UsageError, match=words):
        check_alone(export, path)
    # What was written before they were kept says nothing of them.
    path.write_text(json.dumps({name: value for name, value in recorded.items() if name not in change}))
    assert check_alone(export, path).outcome == "pass"


def test_a_known_crash_that_is_avoided_is_compared_with_its_like_alone(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_crash, "_processor_has_amx", lambda: True)
    target, path = Target(gated_decoder(tmp_path_factory)), tmp_path / "baseline.json"

    def check(*, record: bool = False) -> Verdict:
        return check_baseline(
            target, path, max_ratio=20.0, options=RunOptions(threads=1), workload=guard_workload(8, 4), record=record
        )[0]

    assert check(record=True).changes == (known_crash.AVOIDED,)
    history = json.loads(path.read_text())
    assert (history["precision"], history["properties"]) == ("fp32", {"INFERENCE_PRECISION_HINT": "f32"})
    path.write_text(json.dumps({**history, "precision": "bf16", "properties": {}}))
    with pytest.raises(UsageError, match="in bf16; this ran in fp32, INFERENCE_PRECISION_HINT=f32"):
        check()
    for name in ("precision", "properties"):
        del history[name]
    path.write_text(json.dumps(history))
    with pytest.raises(UsageError, match="nothing says whether the baseline was computed in float32"):
        check()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda history: history["environment"]["versions"].update(openvino="1.0"),
            r"other versions: openvino 1\.0 -> ",
        ),
        (lambda history: history["environment"].update(machine_id="0" * 64), "of another machine"),
        (lambda history: history["workload"].update(prompt_tokens=9), r"other flags: prompt_tokens 9 \(here 8\)"),
        (lambda history: recorded_values(history).clear(), "it holds nothing, and needs ttft_s"),
        (lambda history: recorded_values(history).pop("ttft_s"), "and needs ttft_s"),
        (lambda history: recorded_values(history)["ttft_s"].__setitem__(0, -0.003), "greater than 0"),
        (lambda history: recorded_values(history)["ttft_s"].pop(), "different numbers of blocks"),
    ],
)
def test_a_history_of_something_else_is_refused_before_anything_is_measured(
    export: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorded: dict[str, Any],
    change: Callable[[dict[str, Any]], object],
    words: str,
) -> None:
    path, history = tmp_path / "baseline.json", json.loads(json.dumps(recorded))
    change(history)
    path.write_text(json.dumps(history))
    monkeypatch.setattr("serve.guard.baseline.run_benchmark", lambda *_, **__: pytest.fail("it measures"))
    with pytest.raises((UsageError, DocumentInvalid), match=words):
        check_alone(export, path)


def test_versions_of_this_environment_say_nothing_of_another(
    export: Path, tmp_path: Path, recorded: dict[str, Any]
) -> None:
    place = environment_seeing_ours(tmp_path / "new")
    path, history = tmp_path / "baseline.json", json.loads(json.dumps(recorded))
    history["environment"]["versions"]["onnxruntime"] = "0.1"
    path.write_text(json.dumps(history))
    found, _ = check_baseline(
        parse_target(f"{export}@format=onnx,environment={place}"),
        path,
        max_ratio=20.0,
        options=RunOptions(threads=1, huge_pages=False),
        workload=guard_workload(8, 4),
    )
    assert found.outcome == "pass"


@pytest.mark.slow
def test_a_baseline_is_measured_with_other_settings_where_the_first_ones_die(export: Path, tmp_path: Path) -> None:
    place = environment_seeing_ours(tmp_path / "new", at_start=DIES_WITH_ONE_THREAD)
    target, path = parse_target(f"{export}@format=onnx,environment={place}"), tmp_path / "baseline.json"

    def check(*, record: bool = False) -> Verdict:
        return check_baseline(
            target,
            path,
            max_ratio=20.0,
            options=RunOptions(threads=1, huge_pages=False),
            workload=guard_workload(8, 4),
            record=record,
        )[0]

    first = check(record=True)
    assert first.outcome == "pass"
    assert "measured with --threads 2, because without it" in first.changes[0]
    history = json.loads(path.read_text())
    assert history["options"]["threads"] == 2
    # The same flags meet the same crash, and the history of what came of it.
    assert check().outcome == "pass"
    # A history of the settings that die now: others would be compared with it, so nothing is.
    history["options"]["threads"] = 1
    path.write_text(json.dumps(history))
    with pytest.raises(RuntimeCrashed, match="SIGFPE"):
        check()
