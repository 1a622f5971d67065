"""Why a measuring process may have died, with what settings, and which one to change.

Nobody is left who could say why, so the signal and the settings have to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.runtimes.deployment import Deployment
from serve.runtimes.known_crash import signal_name
from serve.runtimes.runtime import RunOptions, RuntimeFacts
from serve.visitor.own_process import usable_cpus
from shearling.errors import ResourceExhausted, RuntimeCrashed, ShearlingError

REASONS: Mapping[str, str] = {
    "SIGFPE": "a division by zero inside a kernel of the runtime",
    "SIGILL": "an instruction that this processor does not have: a build for another one, or a wrong choice of kernel",
    "SIGSEGV": "memory that is not its own: a defect of the runtime, or an operator built for another version of it",
    "SIGBUS": "a mapped file was cut short, or its disk or memory ran out",
    "SIGABRT": "the runtime gave up by itself",
    "SIGKILL": "most likely the system, for memory; else somebody ended it",
    "SIGTERM": "somebody ended it",
    "SIGHUP": "its terminal was closed",
    "SIGXCPU": "a limit of processor time (ulimit -t)",
    "SIGXFSZ": "a limit of file size (ulimit -f)",
    "SIGSYS": "a system call that a sandbox forbids",
}
UNUSUAL = "a signal that runtimes do not send themselves"
OF_THE_RUNTIME = frozenset({"SIGFPE", "SIGILL", "SIGSEGV", "SIGBUS", "SIGABRT"})
"""Signals that other settings may avoid."""


@dataclass(frozen=True)
class OtherSettings:
    """One change, and how a user would ask for it."""

    options: RunOptions
    flag: str


class MeasuringProcessDied(RuntimeCrashed):
    """By a signal.

    Attributes:
        signal: its name.
        other: settings that may avoid it; None where there are none to try.
    """

    signal: str = ""
    other: OtherSettings | None = None


def describe_crash(
    code: int,
    *,
    deployment: Deployment,
    options: RunOptions,
    doing: Mapping[str, Any],
    facts: RuntimeFacts | None,
    said: str | None,
) -> ShearlingError:
    """The error for a process that ended by itself.

    Args:
        code: as `subprocess.Popen.wait` gives it; negative for a signal.
        deployment: what it ran.
        options: how.
        doing: the last request of `serve.visitor.protocol`.
        facts: what the runtime said of itself, if it came so far.
        said: the last line on its stderr.
    """
    name = signal_name(code)
    settings = f"{_work(doing)}; {_settings(deployment, options, facts)}"
    words = f": {said}" if said else ""
    if name is None:
        return RuntimeCrashed(
            f"the measuring process ended with exit code {code} {settings}{words}",
            where=deployment.label,
            remedy="Run with the settings that it was started with by hand, to see what it says",
        )
    reason = f"({REASONS.get(name, UNUSUAL)}){words}"
    if name == "SIGKILL":
        return ResourceExhausted(
            f"the system killed the measuring process {settings} {reason}",
            where=deployment.label,
            remedy="Measure fewer models at once, or a smaller batch or prompt",
        )
    # A division by zero is of a kernel that is made for this model, not of the reading of its tokenizer.
    loading = doing["do"] == "load" and name != "SIGFPE"
    other = other_settings(deployment, options, loading=loading) if name in OF_THE_RUNTIME else None
    crash = MeasuringProcessDied(
        f"the measuring process died of {name} {settings} {reason}",
        where=deployment.label,
        remedy=_remedy(name, other),
    )
    crash.signal, crash.other = name, other
    return crash


def describe_end(code: int, *, where: str, settings: str, remedy: str) -> ShearlingError:
    """The error for a process of a command that a signal ended amid its work.

    Args:
        code: negative, the signal.
        where: what it ran.
        settings: how, in words.
        remedy: settings that may avoid a crash.
    """
    name = signal_name(code) or ""
    told = f"with {settings} ({REASONS.get(name, UNUSUAL)})"
    if name == "SIGKILL":
        return ResourceExhausted(
            f"the system killed the process that ran it {told}", where=where, remedy="Give it less to do at once"
        )
    return RuntimeCrashed(
        f"the process that ran it died of {name} {told}",
        where=where,
        remedy=f"{remedy}, or another version of the runtime; known crashes are in docs/latency.md"
        if name in OF_THE_RUNTIME
        else _remedy(name, None),
    )


def other_settings(deployment: Deployment, options: RunOptions, *, loading: bool) -> OtherSettings | None:
    """The one change that most likely avoids a crash; None where there is none to make.

    What dies while GenAI loads is most often a tokenizer converted for another release, which the IR alone does not
    need; an engine that is OpenVINO alone has none. Else float32 first: its kernels are the oldest, and one thread
    stays, whose waits can be told apart. Then another number of threads, which divides the work elsewhere.
    """
    if loading and deployment.format == "openvino" and deployment.engine != "openvino" and options.genai:
        return OtherSettings(options.model_copy(update={"genai": False}), "--no-genai")
    if deployment.format in ("openvino", "torch") and options.precision != "fp32":
        return OtherSettings(options.model_copy(update={"precision": "fp32"}), "--precision fp32")
    if options.threads != 2 and len(usable_cpus()) > 1:
        return OtherSettings(options.model_copy(update={"threads": 2}), "--threads 2")
    if options.threads != 1:
        return OtherSettings(options.model_copy(update={"threads": 1}), "--threads 1")
    if options.huge_pages:
        return OtherSettings(options.model_copy(update={"huge_pages": False}), "--no-huge-pages")
    return None


def _work(doing: Mapping[str, Any]) -> str:
    if doing["do"] != "generate":
        return {"load": "while it loaded the model", "start": "before it was asked"}.get(
            doing["do"], "while it moved its memory"
        )
    rows = doing["rows"]
    return f"at {len(rows)} x {len(rows[0])} prompt tokens and {doing['new_tokens']} new ones"


def _settings(deployment: Deployment, options: RunOptions, facts: RuntimeFacts | None) -> str:
    parts = [
        facts.runtime if facts else deployment.format,
        f"precision {options.precision}{f' ({facts.precision})' if facts else ''}",
        "threads as the runtime likes" if options.threads is None else f"{options.threads} thread(s)",
        f"huge pages {'on' if options.huge_pages else 'off'}",
    ]
    if deployment.environment is not None:
        parts.append(f"in {deployment.environment}")
    return ", ".join(parts)


def _remedy(name: str, other: OtherSettings | None) -> str:
    if name not in OF_THE_RUNTIME:
        return "Lift the limit, or run it again"
    first = f"Try {other.flag}" if other else "Try other settings"
    return f"{first}, or another version of the runtime: DIR@environment=DIR; known crashes are in docs/latency.md"
