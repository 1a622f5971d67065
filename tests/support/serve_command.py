"""`python -m serve` as a user runs it, with little to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

QUICK = ["--prompt-tokens", "16", "--max-new-tokens", "4", "--repeats", "3", "--threads", "1"]
PROMPT = "Area man wins award for the best"


def serve(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def run_serve(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A few tokens of `PROMPT`."""
    options = ("--prompt", PROMPT, "--max-new-tokens", "4", "--no-chat", "--json")
    return serve("generate", directory, *options, **environment)
