"""What pages show in a block of shell, carried out."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.stage_commands import run_stage

WITH_IMPORTS = ("train", "search", "export", "shearling")
"""The commands that take long to begin."""

PLAIN = re.compile(r"[\w ./,:=-]+\n?")
"""One line of words, of which a shell makes nothing else."""


def run_shown(text: str, *, directory: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What a reader sees who has a block carried out.

    Args:
        text: the block. One that is a command of `WITH_IMPORTS` and nothing else begins with its imports done; every
            other one is given to bash.
        directory: where it is carried out.
        environment: of the reader.
    """
    words = text.split() if PLAIN.fullmatch(text) else []
    command = words[2:] if words[:2] == ["python", "-m"] else words
    if command and command[0] in WITH_IMPORTS:
        return run_stage(*command, directory=directory, environment=environment)
    shell = ["bash", "-euc", text]
    return subprocess.run(shell, cwd=directory, env=environment, capture_output=True, text=True, check=False)
