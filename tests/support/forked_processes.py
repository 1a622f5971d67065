"""Processes of their own that begin with their imports done: for tests that ask one small question of each of many.

A process imports what all questions need, once, and is forked for each of them. What a question does, to itself or by
crashing, is seen by no other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

SERVER = """
import json, os, sys

for name in sys.argv[1:]:
    __import__(name)
for line in sys.stdin:
    question = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(question[name], os.O_WRONLY | os.O_CREAT), number)
        os.chdir(question["directory"])
        os.environ.clear(), os.environ.update(question["environment"])
        # Behind the working directory, as where a process begins.
        sys.path[1:1] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place not in sys.path]
        sys.argv = ["-c", *question["arguments"]]
        exec(compile(question["code"], "<question>", "exec"), {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class ForkedProcesses:
    """Runs code in forks of one process, with one thread each; a context manager, which ends that process."""

    def __init__(self, *modules: str) -> None:
        """Args:
        modules: what it imports; nothing that starts threads, since none survives a fork.
        """
        self._modules = modules
        self._process: subprocess.Popen[str] | None = None

    def run(
        self,
        code: str,
        *arguments: str | Path,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """What `python -c code arguments` would have done in a directory and an environment, by default those here.

        What is imported already is not imported again: of the environment, modules see what they ask for later.
        """
        words = [str(argument) for argument in arguments]
        with tempfile.TemporaryDirectory() as temporary:
            files = {name: Path(temporary, name) for name in ("stdout", "stderr")}
            question = {
                "code": code,
                "arguments": words,
                "directory": str(directory or Path.cwd()),
                "environment": _single_threaded(os.environ if environment is None else environment),
                **{name: str(file) for name, file in files.items()},
            }
            exit_code = self._ask(json.dumps(question))
            texts = [file.read_text(encoding="utf-8") for file in files.values()]
        return subprocess.CompletedProcess(["python", "-c", code, *words], exit_code, *texts)

    def _ask(self, question: str) -> int:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER, *self._modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=_single_threaded(os.environ),
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())
        except BaseException:
            # A test that was stopped while it waited: the answer must not be taken for that of the next question.
            os.killpg(self._process.pid, signal.SIGKILL)
            self.close()
            raise

    def close(self) -> None:
        """End the process; with its input closed it comes to its end."""
        if self._process is not None:
            self._process.__exit__(None, None, None)
            self._process = None

    def __enter__(self) -> ForkedProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _single_threaded(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "OMP_NUM_THREADS": "1"}
