"""The measuring of the guard itself, on a model of a moment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.latency_guard import Check, main, summarise
from shearling.kernel.openvino_core import openvino_core
from shearling.model.checkpoint import save_model
from tests.support.tiny_models import llama_tied_gqa, tiny_tokenizer

pytestmark = [pytest.mark.alone, pytest.mark.slow]


def checks(kind: str, *outcomes: str) -> list[Check]:
    return [Check(kind, outcome, 20.0, 2.0, "") for outcome in outcomes]


def test_what_is_good_enough() -> None:
    good = [
        *checks("same", *["pass"] * 98, "inconclusive", "regression"),
        *checks("longer", *["regression"] * 95, *["inconclusive"] * 5),
    ]
    assert summarise(good)["good_enough"]
    assert summarise(good)["false_alarms"] == 2
    assert not summarise([*good, *checks("same", "inconclusive")])["good_enough"]
    assert not summarise([*good, *checks("longer", "pass")])["good_enough"]
    assert not summarise([*good, Check("same", "pass", 61.0, 2.0, "")])["good_enough"]
    assert summarise([*good, Check("same", "pass", 61.0, 2.0, "")], budget_s=300)["good_enough"]
    fewer = [*good[:100], *checks("longer", *["regression"] * 91, *["inconclusive"] * 9)]
    assert not summarise(fewer)["good_enough"]
    assert summarise(fewer, max_ratio=1.02)["good_enough"]


def test_beside_rivals_more_may_stay_open_and_no_more_may_be_wrong() -> None:
    open_ones = [
        *checks("same", *["pass"] * 90, *["inconclusive"] * 10),
        *checks("longer", *["regression"] * 90, *["inconclusive"] * 10),
    ]
    assert not summarise(open_ones)["good_enough"]
    assert summarise(open_ones, busy=True)["good_enough"]
    assert not summarise([*open_ones, *checks("same", *["regression"] * 3)], busy=True)["good_enough"]
    assert not summarise([*open_ones, *checks("longer", *["pass"] * 6)], busy=True)["good_enough"]


def test_one_check_of_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "hf"
    model.mkdir()
    save_model(llama_tied_gqa(), tiny_tokenizer(), model)
    # Times of microseconds: only that both kinds are checked, and kept, is asserted.
    options = ["--model", str(model), "--work", str(tmp_path / "work"), "--checks", "1", "--budget", "1"]
    main([*options, "--rivals", "1"])
    summary = json.loads(capsys.readouterr().out)
    assert (summary["same_model"], summary["longer_model"]) == (1, 1)
    kept = (tmp_path / "work" / "checks.jsonl").read_text()
    # What a kill leaves of a line is no check.
    with (tmp_path / "work" / "checks.jsonl").open("a") as stream:
        stream.write('{"kind": "sa')
    main([*options, "--rivals", "1"])
    assert (tmp_path / "work" / "checks.jsonl").read_text() == kept
    # Checks of other conditions are not counted with these.
    with pytest.raises(SystemExit, match="2"):
        main([*options, "--rivals", "0"])
    assert "rivals = 1, not 0" in capsys.readouterr().err
    sizes = [
        len(openvino_core().read_model(tmp_path / "work" / name / "openvino_model.xml").get_ops())
        for name in ("model-int8", "longer-int8-1")
    ]
    assert sizes[1] > sizes[0]


def test_rivals_end_with_the_benchmark_however_it_ends() -> None:
    script = (
        "import time\nfrom benchmarks.latency_guard import rivals\nwith rivals(1) as pids:\n    "
        "print(*pids, flush=True)\n    time.sleep(60)"
    )
    benchmark = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert benchmark.stdout is not None
    rival = int(benchmark.stdout.readline())
    assert _runs(rival)
    benchmark.kill()
    benchmark.communicate()
    deadline_s = time.monotonic() + 30
    while _runs(rival) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not _runs(rival)


def _runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
