"""The comparison of wheel and toolchain: its verdicts, and both of its sides on a real export; no figure is judged."""

from __future__ import annotations

import json
from pathlib import Path

import build_wheels
import pytest

from benchmarks.runtime_wheel import judge, main
from serve.bench.statistics import Estimate
from tests.support.deployments import write_export
from tests.support.onnxruntime_headers import needs_headers


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.99, 1.01, "equal"),
        (0.981, 1.019, "equal"),
        (0.99, 1.03, "inconclusive"),
        (0.9, 1.0, "inconclusive"),
        (1.03, 1.2, "slower"),
        (0.9, 0.97, "faster"),
    ],
)
def test_a_verdict_is_of_the_whole_interval(low, high, verdict):
    assert judge(Estimate(median=(low + high) / 2, low=low, high=high, samples=12)) == verdict


@pytest.mark.slow
@needs_headers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torchao warns while optimum imports it
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_both_sides_do_the_same_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export, wheel = write_export(tmp_path / "export"), build_wheels.build_runtime(tmp_path / "dist")
    options = ["--rounds", "2", "--prompt-tokens", "16", "--max-new-tokens", "4", "--repeats", "2", "--threads", "1"]
    code = main([str(export), "--wheel", str(wheel), *options])
    told = json.loads(capsys.readouterr().out)
    assert (code == 1) == (told["verdict"] == "slower")
    assert told["toolchain"]["settings"]["INFERENCE_NUM_THREADS"] == "1"
    assert told["packed"] is False
    for measured in told["rounds"]:
        ratio = measured["wheel"]["tpot_s"] / measured["toolchain"]["tpot_s"]
        # A token of a tiny model: a unit that is mistaken, or other work, would be far outside.
        assert 0.05 < ratio < 20
