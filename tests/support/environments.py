"""Virtual environments for tests of runtimes that are installed apart."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

from tests.support.documents import ROOT

LOADING = """
import json, sys
from pathlib import Path
from serve.runtimes.deployment import find_deployment
from serve.runtimes.runtime import Decoding, RunOptions, load_runtime
from shearling.target import parse_target
runtime = load_runtime(find_deployment(parse_target(sys.argv[1])), RunOptions(threads=1))
show = lambda value: print(json.dumps(value))
"""


def environment_with(directory: Path, *, module: str, source: str, distribution: str, sees_ours: bool = False) -> Path:
    """A virtual environment that holds one module, as version 0.0.1 of a distribution, and nothing else; or also what
    `environment_seeing_ours` says.
    """
    if sees_ours:
        environment_seeing_ours(directory)
    else:
        venv.create(directory, with_pip=False)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / f"{module}.py").write_text(source)
    facts = packages / f"{distribution.replace('-', '_')}-0.0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.0.1\n")
    return directory


def environment_seeing_ours(directory: Path, *, at_start: str = "") -> Path:
    """A virtual environment with the runtimes of the one that runs, and nothing of this project.

    Args:
        directory: a new one.
        at_start: Python that every process of it runs first.
    """
    venv.create(directory, with_pip=False)
    (packages,) = directory.glob("lib/python*/site-packages")
    # What a .pth of that directory does, an editable installation above all, is not done here.
    (packages / "runtimes.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Not sitecustomize, of which some systems have one of their own; behind the .pth that shows the runtimes.
    (packages / "run_at_start.py").write_text(at_start)
    (packages / "z_run_at_start.pth").write_text("import run_at_start\n")
    return directory


def run_inside(environment: Path, model: Path | str, work: str) -> Any:
    """What `show` is called with last, by lines that use the `runtime` of a model and see the modules of an
    environment.
    """
    paths = f"{ROOT}:{next(environment.glob('lib/python*/site-packages'))}"
    done = subprocess.run(
        [sys.executable, "-c", LOADING + work, str(model)],
        env={"PYTHONPATH": paths, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
