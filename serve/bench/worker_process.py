"""The parent's handle on one `serve.bench.worker`."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import shearling.errors
from serve.bench.crash import describe_crash
from serve.bench.workload import Rows
from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import Generation, RunOptions, RuntimeFacts
from shearling.errors import RuntimeCrashed, ShearlingError
from shearling.strict_json import Document
from shearling.virtual_environment import interpreter_of, isolation

ROOT = Path(__file__).resolve().parents[2]
WITH_OUR_PACKAGES = (
    "import runpy, sys; sys.path.append(sys.argv.pop()); "
    "runpy.run_module('serve.bench.worker', run_name='__main__', alter_sys=True)"
)
"""Runs the worker in an environment whose own packages go before ours."""
VISIT = (
    "import runpy, sys, types; serve = types.ModuleType('serve'); serve.__path__ = [sys.argv.pop()]; "
    "sys.modules['serve'] = serve; runpy.run_module('serve.visitor', run_name='__main__', alter_sys=True)"
)
"""Runs `serve.visitor` where nothing of ours is installed: of all that lies beside it, only `serve` can be imported."""


SILENCE_S = 300.0
"""After which a process that does not answer is looked at."""
LOOKS = 2
"""That find nothing computed, one after the other: at the first one all may have stood still together (Ctrl-Z)."""
IDLE_S = 1.0
"""Of CPU time: what has used less meanwhile waits for something that never comes."""


class LoadReport(Document):
    """What loading cost.

    Attributes:
        import_s: of the runtime's Python packages.
        load_s: reading and compiling the model and its tokenizer, after the imports; file caches are warm.
        memory_before_bytes: resident after the imports.
        facts: what really runs.
    """

    import_s: float
    load_s: float
    memory_before_bytes: int
    facts: RuntimeFacts


class ProcessReport(Document):
    """What a process holds.

    Attributes:
        peak_bytes: highest resident memory so far, mapped files included.
        private_bytes: resident now and of no file: heap and stacks.
        huge_bytes: of that in huge pages.
        refused_bytes: that could be there, but the system gave no huge pages for them.
        cpus: it may use.
        nice: its priority; below 0 goes before others.
    """

    peak_bytes: int
    private_bytes: int
    huge_bytes: int
    cpus: tuple[int, ...]
    nice: int
    refused_bytes: int = 0

    @property
    def huge_share(self) -> float:
        """In huge pages, of what could be there; 0 where the system has none."""
        return self.huge_bytes / (self.huge_bytes + self.refused_bytes) if self.huge_bytes else 0.0


class Timed(Document):
    """A generation, and what the computing threads waited for a CPU meanwhile; see `serve.visitor.waiting`.

    Attributes:
        started_s: when; of `time.perf_counter`.
        wall_s: of the call, with what it prepares.
        waited_s: of it; None where the system does not count.
        stolen_s: what a hypervisor took from the process's CPUs meanwhile; see `serve.visitor.interruptions`.
        preemptions: how often a thread was put off its CPU.
        instructions: of the process; None on most virtual machines.
    """

    generation: Generation
    started_s: float
    wall_s: float
    waited_s: float | None
    stolen_s: float | None = None
    preemptions: int | None = None
    instructions: int | None = None

    @property
    def waited_share(self) -> float:
        """Of the wall time; 0 where the system does not count."""
        return (self.waited_s or 0.0) / self.wall_s


def _open_errors() -> IO[bytes]:
    """In memory, where the system offers it (Linux): a container may have no directory that can be written."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("errors"), "w+b")
    return tempfile.TemporaryFile()


class WorkerProcess:
    """Use as a context manager; the process ends with it, whatever happens.

    Args:
        deployment: what it will load.
        options: how it will run.
    """

    def __init__(self, deployment: Deployment, options: RunOptions) -> None:
        self._deployment = deployment
        self._options = options
        self._doing: dict[str, Any] = {"do": "start"}
        self._facts: RuntimeFacts | None = None
        self._patience = _Patience(0)
        self._refused_bytes = 0
        self._errors = _open_errors()
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        # Not from the directory that this happens to run in, which may hold another `serve`.
        command = [sys.executable, "-P", "-m", "serve.bench.worker"]
        if deployment.engine is not None:
            alone = isolation(deployment.environment)
            command = [str(interpreter_of(deployment.environment)), alone, "-c", VISIT, str(ROOT / "serve")]
        elif deployment.environment is not None:
            # It has its runtime and what that needs; the rest is ours. Both are of one Python version, as
            # `shearling.virtual_environment` has checked.
            command = [
                str(interpreter_of(deployment.environment)),
                "-P",
                "-c",
                WITH_OUR_PACKAGES,
                sysconfig.get_path("purelib"),
            ]
        if options.threads is not None:
            environment["OMP_NUM_THREADS"] = str(options.threads)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # it died first; `_ask` has said so
        # It owns nothing but memory, and a runtime takes seconds to give that back in order.
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def load(self) -> LoadReport:
        """Import the runtime and load the model.

        Raises:
            ShearlingError: of the class that the worker raised.
        """
        self.start_loading()
        return self.finish_loading()

    def start_loading(self) -> None:
        """Let it load; `finish_loading` waits for it."""
        deployment = self._deployment.model_dump(mode="json")
        if self._deployment.engine is not None:
            deployment["opened"] = str(self._deployment.model_file.absolute())
        self._tell({"do": "load", "deployment": deployment, "options": self._options.model_dump(mode="json")})

    def finish_loading(self) -> LoadReport:
        """See `load`."""
        report = LoadReport.model_validate_json(json.dumps(self._hear()))
        self._facts = report.facts
        return report

    def generate(self, rows: Rows, *, new_tokens: int) -> Timed:
        """Compute exactly `new_tokens` tokens for each row, end tokens or not."""
        self.start_generating(rows, new_tokens=new_tokens)
        return self.finish_generating()

    def start_generating(self, rows: Rows, *, new_tokens: int) -> None:
        """Let it generate; `finish_generating` waits for it."""
        self._tell({"do": "generate", "rows": rows, "new_tokens": new_tokens})

    def finish_generating(self) -> Timed:
        """See `generate`."""
        return Timed.model_validate_json(json.dumps(self._hear()))

    def has_answered(self, *, within_s: float) -> bool:
        """Wait for an answer, or its end, which `finish_generating` then finds.

        Raises:
            RuntimeCrashed: it hangs: for long it has said nothing, and computed nothing, since it was asked.
        """
        if self._process.stdout is None:
            raise ShearlingError("the worker has no pipes")
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            answered = bool(selector.select(within_s))
        if not answered and self._patience.is_over():
            raise RuntimeCrashed(
                f"the measuring process hangs: asked to {self._doing['do']}, it said nothing for "
                f"{LOOKS * SILENCE_S:g} s, and computed nothing",
                where=self._deployment.label,
                remedy="Try other --threads, or another version of the runtime",
            )
        return answered

    def stop(self) -> None:
        """Let it stand still, wherever it is, until `go_on`; returns when it does, or has ended."""
        self._process.send_signal(signal.SIGSTOP)
        # One of its threads is told, and may wait for a CPU, before it tells the others. A process that has ended may
        # have been noticed by the line above.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def go_on(self) -> None:
        """See `stop`."""
        self._process.send_signal(signal.SIGCONT)

    def settle(self) -> None:
        """Pin it, and move what the warm-up has allocated into huge pages, unless the options forbid it; see
        `serve.visitor.huge_pages`.
        """
        settled = self._ask({"do": "settle", "threads": self._options.threads, "huge_pages": self._options.huge_pages})
        self._refused_bytes = int(settled["refused_bytes"])

    def report(self) -> ProcessReport:
        """What the process holds now, and its peak until now."""
        found = {**self._ask({"do": "report"}), "refused_bytes": self._refused_bytes}
        return ProcessReport.model_validate_json(json.dumps(found))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._tell(request)
        return self._hear()

    def _tell(self, request: dict[str, Any]) -> None:
        self._doing, self._patience = request, _Patience(self._process.pid)
        stdin = self._process.stdin
        if stdin is None:
            raise ShearlingError("the worker has no pipes")
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def _hear(self) -> dict[str, Any]:
        # One that hangs would hold up every other check.
        while not self.has_answered(within_s=SILENCE_S):
            continue
        line = self._process.stdout.readline() if self._process.stdout else ""
        # It may have died before it said all of a line.
        if not line.endswith("\n"):
            raise self._death()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            error_class = getattr(shearling.errors, reply["error"], ShearlingError)
            raise error_class(reply["message"], where=reply["where"], remedy=reply["remedy"])
        return reply

    def _death(self) -> ShearlingError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return describe_crash(
            code,
            deployment=self._deployment,
            options=self._options,
            doing=self._doing,
            facts=self._facts,
            said=lines[-1] if lines else None,
        )


class _Patience:
    """With a process that was asked something, and has not answered yet.

    Args:
        process: its number.
    """

    def __init__(self, process: int) -> None:
        self._process = process
        self._looked_s, self._used_s = time.monotonic(), _cpu_time_s(process)
        self._idle = 0

    def is_over(self) -> bool:
        """Whether it hangs; may be asked as often as one likes."""
        now_s = time.monotonic()
        if now_s - self._looked_s < SILENCE_S:
            return False
        before_s, self._looked_s, self._used_s = self._used_s, now_s, _cpu_time_s(self._process)
        if before_s is not None and self._used_s is not None:
            self._idle = self._idle + 1 if self._used_s - before_s < IDLE_S else 0
        return self._idle >= LOOKS


def _cpu_time_s(process: int) -> float | None:
    """What all threads of a process have used, or None where the system does not say: Linux, proc(5), fields 14 and 15
    of /proc/PID/stat.
    """
    try:
        behind_name = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return sum(map(int, behind_name[11:13])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
