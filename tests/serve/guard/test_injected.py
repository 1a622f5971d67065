"""What an upgrade can do that no default check shows: each is caught by its option, on a real runtime.

One environment has the same ONNX Runtime as ours, and around it four defects that somebody could have released: long
prompts, batches of four, loading, and memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.guard.regression import LOAD, MEMORY, Demands, Verdict, check_regression, guard_workload
from serve.runtimes.runtime import RunOptions
from shearling.target import parse_target
from tests.support.environments import environment_seeing_ours

pytestmark = [pytest.mark.alone, pytest.mark.slow]

DEFECTS = """
import sys
if sys.argv and sys.argv[0] == "-c":
    import time
    import numpy, onnxruntime

    class Session(onnxruntime.InferenceSession):
        def __init__(self, *arguments, **named):
            time.sleep(0.4)
            self.hoard = numpy.ones(50_000_000)
            super().__init__(*arguments, **named)

        def io_binding(self):
            binding = super().io_binding()
            bind = binding.bind_cpu_input

            def slow(name, value):
                if name == "input_ids" and value.shape[1] > 100:
                    time.sleep(0.1)
                if name == "input_ids" and value.shape[0] == 4:
                    time.sleep(0.02)
                bind(name, value)

            binding.bind_cpu_input = slow
            return binding

    onnxruntime.InferenceSession = Session
"""
OPTIONS = RunOptions(threads=1, huge_pages=False)
WIDE = 2.0


@pytest.fixture(scope="module")
def sides(export: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("upgrade")
    environments = {"new": DEFECTS, "old": ""}
    return [
        f"{export}@format=onnx,environment={environment_seeing_ours(root / name, at_start=source)}"
        for name, source in environments.items()
    ]


def check(sides: list[str], demands: Demands, *, prompt_tokens: int = 16, batch: int = 1) -> Verdict:
    work = guard_workload(prompt_tokens, 4, batch=batch)
    candidate, reference = map(parse_target, sides)
    return check_regression(candidate, reference, demands=demands, options=OPTIONS, workload=work)[0]


def test_the_defaults_see_none_of_them(sides: list[str]) -> None:
    assert check(sides, Demands(WIDE)).outcome == "pass"


def test_a_long_prompt(sides: list[str]) -> None:
    verdict = check(sides, Demands(WIDE), prompt_tokens=120)
    assert verdict.outcomes["ttft_s"] == "regression"
    assert verdict.outcomes["tpot_s"] != "regression"


def test_a_batch_of_four(sides: list[str]) -> None:
    assert check(sides, Demands(WIDE), batch=4).outcomes["tpot_s"] == "regression"


def test_load_time_and_memory(sides: list[str]) -> None:
    verdict = check(sides, Demands(WIDE, max_load_ratio=WIDE, max_memory_ratio=WIDE))
    assert {name: verdict.outcomes[name] for name in (LOAD, MEMORY, "ttft_s", "tpot_s")} == {
        LOAD: "regression",
        MEMORY: "regression",
        "ttft_s": "pass",
        "tpot_s": "pass",
    }
    assert verdict.ratios[LOAD].samples >= 9
