"""The measuring of the guard itself, on a model of a moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shearling.checkpoint import save_model
from shearling.openvino_core import openvino_core
from tests.benchmark.latency_guard import Check, main, summarise
from tests.tiny_models import llama_tied_gqa, tiny_tokenizer


def checks(kind: str, *outcomes: str) -> list[Check]:
    return [Check(kind, outcome, 20.0, 2.0, "") for outcome in outcomes]


def test_what_is_good_enough() -> None:
    good = [*checks("same", *["pass"] * 98, "inconclusive", "regression"), *checks("longer", *["regression"] * 95, *["inconclusive"] * 5)]
    assert summarise(good)["good_enough"]
    assert summarise(good)["false_alarms"] == 2
    assert not summarise([*good, *checks("same", "inconclusive")])["good_enough"]
    assert not summarise([*good, *checks("longer", "pass")])["good_enough"]
    assert not summarise([*good, Check("same", "pass", 61.0, 2.0, "")])["good_enough"]


def test_one_check_of_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "hf"
    model.mkdir()
    save_model(llama_tied_gqa(), tiny_tokenizer(), model)
    # Times of microseconds: only that both kinds are checked, and kept, is asserted.
    main(["--model", str(model), "--work", str(tmp_path / "work"), "--checks", "1", "--rivals", "1", "--budget", "1"])
    summary = json.loads(capsys.readouterr().out)
    assert (summary["same_model"], summary["longer_model"]) == (1, 1)
    kept = (tmp_path / "work" / "checks.jsonl").read_text()
    main(["--model", str(model), "--work", str(tmp_path / "work"), "--checks", "1", "--rivals", "0"])
    assert (tmp_path / "work" / "checks.jsonl").read_text() == kept
    sizes = [len(openvino_core().read_model(tmp_path / "work" / name / "openvino_model.xml").get_ops()) for name in ("model", "longer")]
    assert sizes[1] > sizes[0]
