"""The order in which exports are measured, and what their table says; the exports themselves are tested elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import optimum_export
from benchmarks.peak_memory import Measured
from shearling.errors import UsageError


class StandIn:
    """Measures nothing: the n-th export takes n seconds and n GiB."""

    def __init__(self, exit_code: int = 0) -> None:
        self.commands: list[list[str]] = []
        self._exit_code = exit_code

    def __call__(self, command: list[str]) -> Measured:
        self.commands.append(command)
        count = len(self.commands)
        return Measured(self._exit_code, count * 2**30, float(count), log="no such model", output="")


def kind(command: list[str]) -> str:
    return "optimum" if command[0].startswith("optimum") else "off" if "off" in command else "ours"


def test_exports_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimum_export, "run_measured", stand_in := StandIn())
    found = optimum_export.measure(Path("model"), "int8", rounds=3)
    order = ["ours", "off", "optimum"]
    assert [kind(command) for command in stand_in.commands] == [*order, *reversed(order), *order]
    outputs = [command[-1] for command in stand_in.commands]
    assert len(set(outputs)) == len(outputs)
    assert optimum_export.as_table(found).splitlines()[2:] == [
        "| ours | 6.0 | 6.0 GiB |",
        "| ours, `--verify off` | 5.0 | 5.0 GiB |",
        "| optimum | 4.0 | 4.0 GiB |",
    ]


def test_four_bits_are_rounded_without_data_by_both() -> None:
    made = optimum_export.commands(Path("model"), "int4", Path("made"))
    for name in (optimum_export.OURS, optimum_export.WITHOUT_GATES):
        assert made[name][made[name].index("--quantization") + 1] == "fast"
    assert "--dataset" not in made[optimum_export.OPTIMUM]
    assert "--quantization" not in optimum_export.commands(Path("model"), "int8", Path("made"))[optimum_export.OURS]


def test_a_failed_export_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimum_export, "run_measured", StandIn(exit_code=3))
    with pytest.raises(UsageError, match="ours ends with 3: no such model"):
        optimum_export.measure(Path("model"), "int8", rounds=1)
