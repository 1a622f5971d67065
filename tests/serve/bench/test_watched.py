"""Commands that run a runtime in their own process, whose runtime dies: somebody says so, whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.gated_blocks import write_gated_block
from tests.support.serve_command import serve

DYING = "import os, signal\nos.kill(os.getpid(), signal.{})\n"
STUCK = "import time\nopen({!r}, 'w').close()\ntime.sleep(120)\n"
GENERATE = ("generate", "DIR", "--prompt", "Area man", "--threads", "1")
WORKS = [
    (GENERATE, "device CPU, precision default, 1 thread(s)", "Try --precision fp32 or another number of --threads"),
    (
        ("load", "DIR", "--precision", "bf16", "--concurrency", "1"),
        "device CPU, precision bf16, threads as the runtime likes",
        "Try --precision fp32 or another number of --threads",
    ),
    (
        ("forward", "DIR", "--threads", "2"),
        "device CPU, 2 thread(s)",
        "Try @INFERENCE_PRECISION_HINT=f32 or another number of --threads",
    ),
]


@pytest.fixture
def runtime(tmp_path: Path) -> Callable[[str], str]:
    """A value of PYTHONPATH with an OpenVINO of so many lines, which comes before the one that is installed."""

    def write(source: str) -> str:
        (tmp_path / "first").mkdir()
        (tmp_path / "first" / "openvino.py").write_text(source)
        return os.pathsep.join([str(tmp_path / "first"), os.environ["PYTHONPATH"]])

    return write


@pytest.mark.parametrize(("arguments", "settings", "remedy"), WORKS)
def test_a_runtime_that_dies_is_told_with_its_settings_and_what_to_try(
    export: Path, tmp_path: Path, runtime: Callable[[str], str], arguments: tuple[str, ...], settings: str, remedy: str
) -> None:
    model = str(write_gated_block(tmp_path / "model").parent if arguments[0] == "forward" else export / "openvino")
    done = serve(*(item.replace("DIR", model) for item in arguments), PYTHONPATH=runtime(DYING.format("SIGSEGV")))
    assert done.returncode == 4, done.stderr
    for words in (model, "died of SIGSEGV", settings, "a defect of the runtime", remedy):
        assert words in done.stderr
    assert done.stdout == ""


def test_what_the_system_killed_is_told_as_one_json_object(export: Path, runtime: Callable[[str], str]) -> None:
    arguments = [item.replace("DIR", str(export / "openvino")) for item in GENERATE]
    done = serve(*arguments, "--json", PYTHONPATH=runtime(DYING.format("SIGKILL")))
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"], told["error"]) == (4, 4, "ResourceExhausted")
    assert "for memory" in told["message"]


# A shell's background jobs start with SIGINT ignored, and their children inherit that.
BEGIN = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
if os.isatty(0):
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, sys.argv[1:])
"""


def start(export: Path, *, paths: str, mark: Path, terminal: int | None = None) -> subprocess.Popen[str]:
    """A command that has come as far as to load its runtime, which lasts; at a terminal, where one is given."""
    command = [sys.executable, "-m", "serve", *(item.replace("DIR", str(export / "openvino")) for item in GENERATE)]
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, *command],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL if terminal is None else terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + 60
    while not mark.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return process


def child_of(process: subprocess.Popen[str]) -> int:
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("target", ["parent", "child"])
def test_a_signal_to_either_of_them_means_the_command(
    export: Path, tmp_path: Path, runtime: Callable[[str], str], number: int, code: int, words: str, target: str
) -> None:
    mark = tmp_path / "mark"
    process = start(export, paths=runtime(STUCK.format(str(mark))), mark=mark)
    os.kill(process.pid if target == "parent" else child_of(process), number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.count(words) == 1


def test_the_interruption_of_a_terminal_is_told_once(
    export: Path, tmp_path: Path, runtime: Callable[[str], str]
) -> None:
    """It reaches both of them."""
    mark, (keyboard, terminal) = tmp_path / "mark", os.openpty()
    process = start(export, paths=runtime(STUCK.format(str(mark))), mark=mark, terminal=terminal)
    os.write(keyboard, b"\x03")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.count("interrupted") == 1
    for descriptor in (keyboard, terminal):
        os.close(descriptor)


def test_who_kills_the_command_kills_its_work(export: Path, tmp_path: Path, runtime: Callable[[str], str]) -> None:
    mark = tmp_path / "mark"
    process = start(export, paths=runtime(STUCK.format(str(mark))), mark=mark)
    child = child_of(process)
    process.kill()
    process.communicate()
    deadline_s = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
