"""The commands of the stages, as a user runs them, but for what they all import: that is there already.

The imports are most of what a command on a tiny model takes. That they are complete, and light where they must be, is
seen where commands run from the start: in the README's and the wheels' tests, and in those of `--help`.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.documents import ROOT
from tests.support.forked_processes import ForkedProcesses

IMPORTED = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "datasets",
)
COMMAND = "import runpy, sys; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


@functools.cache
def _processes() -> ForkedProcesses:
    """They come to their end with this process, which holds the input open."""
    return ForkedProcesses(*IMPORTED)


def run_stage(
    stage: str,
    *arguments: str | Path,
    code: int | None = None,
    directory: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    before: str = "",
) -> subprocess.CompletedProcess[str]:
    """`python -m stage arguments` in a process of its own.

    Args:
        stage: the package.
        arguments: its options.
        code: the exit code that it must have; None takes any.
        directory: where it runs.
        environment: by default that of this process.
        before: code that the process runs first.
    """
    done = _processes().run(f"{before}\n{COMMAND}", stage, *arguments, directory=directory, environment=environment)
    assert code is None or done.returncode == code, done.stderr
    return done
