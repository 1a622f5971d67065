"""A command of Python in a process of its own, and the most memory that it held.

    python -m benchmarks.peak_memory REPORT MODULE [ARGUMENTS ...]

runs `python -m MODULE ARGUMENTS` and writes the peak of its resident memory (VmHWM of Linux, which unlike ru_maxrss
knows nothing of the process that started it) and its time to REPORT, as JSON.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """A command that has ended.

    Attributes:
        exit_code: of the process; a negative one is a signal, which leaves no peak.
        log: its stderr.
        output: its stdout.
    """

    exit_code: int
    peak_bytes: int
    seconds: float
    log: str
    output: str


def run_measured(arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Measured:
    """Run `python -m` with these arguments, and wait.

    Args:
        arguments: the module first.
        environment: of the process; None takes that of this one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "benchmarks.peak_memory", str(report), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        found = json.loads(report.read_text()) if report.exists() else {"peak_bytes": 0, "seconds": 0.0}
    return Measured(
        done.returncode, int(found["peak_bytes"]), float(found["seconds"]), log=done.stderr, output=done.stdout
    )


def peak_bytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return 1024 * int(found.group(1)) if found else 0


def main(arguments: list[str]) -> None:
    """Run the command that is named, whatever way it ends."""
    report, module, *rest = arguments
    sys.argv = [module, *rest]
    started_s = time.monotonic()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        found = {"peak_bytes": peak_bytes(), "seconds": time.monotonic() - started_s}
        Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
