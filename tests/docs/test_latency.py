"""The page about latency: its first commands as they are written, its crash without this project, its settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import openvino
import pytest

from shearling.kernel.loading import known_crash
from shearling.kernel.loading.known_crash import is_affected
from tests.support.command_parsing import parse_command
from tests.support.deployments import write_export
from tests.support.documents import ROOT

PAGE = (ROOT / "docs" / "latency.md").read_text(encoding="utf-8")
INDENTED = re.findall(r"(?:^    .*\n)+", PAGE, flags=re.MULTILINE)
BLOCKS = [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in INDENTED]


def test_every_command_of_the_page_parses() -> None:
    commands = re.findall(r"^    (python -m serve .+?)(?:  #.*)?$", PAGE.replace("\\\n", " "), flags=re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        words = command.replace('"$GITHUB_STEP_SUMMARY"', "summary.md").split()
        parse_command("serve.__main__", "serve", words[3:])


@pytest.mark.slow
@pytest.mark.alone
def test_the_commands_at_the_top_run_exactly_as_written(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_export(runs / "a" / "export")
    shutil.copytree(runs / "a" / "export", runs / "b" / "export")
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": scripts}
    lines = BLOCKS[0].splitlines()
    assert [line.split()[3] for line in lines] == ["bench", "check", "check", "load", "compare", "history"]
    for line in lines:
        done = subprocess.run(
            ["bash", "-euc", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        # A model of microseconds on the machine of the tests may leave a check open; it may not be slower than itself.
        open_check = " check " in line and "latency inconclusive" in done.stderr
        assert done.returncode == 0 or open_check, f"{line}\n{done.stdout}\n{done.stderr[-3000:]}"
        if " bench " in line:
            # What other days left behind.
            for other in ("other", "monday", "tuesday"):
                shutil.copytree(runs / "bench", runs / other)
    assert (tmp_path / "history.html").is_file()


def test_the_reproduction_of_the_crash_needs_no_project_and_dies_where_the_page_says_so() -> None:
    (program,) = (block for block in BLOCKS if "compile_model" in block)
    assert "shearling" not in program
    assert "serve" not in program
    shown = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    dies = known_crash._has_amx() and is_affected(openvino.__version__)
    assert shown.returncode == (-8 if dies else 0), shown.stderr
