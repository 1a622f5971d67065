"""One step of the demo: a command that makes something out of something, done again only where its inputs changed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic

from shearling.artefact import MANIFEST, sha256_file
from shearling.command_line import Terminated
from shearling.console import log
from shearling.errors import ArtefactError, CheckFailed, EnvironmentFault, OutputExists, ShearlingError, UsageError
from shearling.strict_json import Document, read_document, write_document, write_text

ROOT = Path(__file__).resolve().parents[2]
INTERNAL_OPTION = "--json"
ERRORS: Mapping[int, type[ShearlingError]] = {1: CheckFailed, 2: UsageError, 3: ArtefactError, 4: EnvironmentFault}
STOP_TIMEOUT_S = 600.0
"""A child may be in the middle of a long step that it finishes before it saves."""


@dataclass(frozen=True)
class Step:
    """A command and what it makes.

    Attributes:
        title: what it does, for a newcomer.
        arguments: of the interpreter: `-m`, the module, its options.
        output: what it makes: an artefact directory, or a file.
        inputs: artefact directories and files that decide the output.
        expected_s: roughly, on two cores at full scale; for the estimate of the time left.
        keep_json: `output` is a file that takes the command's `--json` object.
    """

    title: str
    arguments: tuple[str, ...]
    output: Path
    inputs: tuple[Path, ...]
    expected_s: float
    keep_json: bool = False


class StepRecord(Document):
    """What is known of a step that was started.

    Attributes:
        command: its arguments.
        inputs: path -> digest.
        replaced: digest of what stood at the output before.
        output: digest of what it made; None while it runs.
        seconds: what it took, over all sittings.
    """

    command: tuple[str, ...]
    inputs: dict[str, str | None]
    replaced: str | None
    output: str | None
    seconds: float


class LedgerFile(Document):
    """The content of `demo.json`."""

    entries: dict[str, StepRecord] = pydantic.Field(default_factory=dict)


class Ledger:
    """Remembers steps across interruptions.

    Args:
        path: of the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._root = path.parent.absolute()
        self.entries = dict(read_document(path, LedgerFile).entries) if path.is_file() else {}

    def record(self, step: Step, entry: StepRecord) -> None:
        """Replace the entry of a step, durably."""
        self.entries[self.place(step.output)] = entry
        write_document(self._path, LedgerFile(entries=self.entries))

    def find(self, step: Step) -> StepRecord | None:
        """The entry of the step with this output."""
        return self.entries.get(self.place(step.output))

    def place(self, path: Path) -> str:
        """A path as it is remembered: whole, or within the directory of this file, wherever a command is given."""
        whole = path.absolute()
        return f"./{whole.relative_to(self._root)}" if whole.is_relative_to(self._root) else str(whole)

    def command(self, step: Step) -> tuple[str, ...]:
        """The arguments of a step, their paths as they are remembered."""
        named = {str(path) for path in (step.output, *step.inputs)}
        return tuple(
            # A program that is given as text is none.
            self.place(Path(argument))
            if argument in named or (os.sep in argument and "\n" not in argument)
            else argument
            for argument in step.arguments
        )


def fingerprint(path: Path) -> str | None:
    """Digest of an artefact's manifest, or of a file; None where there is neither."""
    file = path / MANIFEST if path.is_dir() else path
    return sha256_file(file) if file.is_file() else None


def carry_out(step: Step, ledger: Ledger, *, force: bool) -> float | None:
    """Do a step, unless it is done.

    Args:
        step: what to do.
        ledger: of the demo.
        force: replace an output that the demo did not make.

    Returns:
        Seconds it took; None where it was done already.

    Raises:
        OutputExists: something that the demo did not make is in the way.
        ShearlingError: of the class that belongs to the command's exit code.
        KeyboardInterrupt, Terminated: the command was interrupted.
    """
    inputs, command = {ledger.place(path): fingerprint(path) for path in step.inputs}, ledger.command(step)
    present, entry = fingerprint(step.output), ledger.find(step)
    same = entry is not None and entry.command == command and entry.inputs == inputs
    if (
        entry is not None
        and same
        and present is not None
        and present == (entry.output or present)
        and present != entry.replaced
    ):
        if entry.output is None:
            ledger.record(step, entry.model_copy(update={"output": present}))
        log.print("done already", style="dim")
        return None
    # An interrupted step may have finished what it made, and not have said so.
    known = entry is not None and (entry.output is None or present in (entry.output, entry.replaced))
    if present is not None and not known and not force:
        raise OutputExists(
            "the demo did not make this",
            where=step.output,
            remedy="Choose another --output, or replace it with --force",
        )
    begun = StepRecord(
        command=command,
        inputs=inputs,
        replaced=present,
        output=None,
        seconds=entry.seconds if entry is not None and same else 0.0,
    )
    ledger.record(step, begun)
    # What other inputs, or another command, left behind is replaced; what the same ones left behind is continued.
    stale = present is not None or (entry is not None and not same) or (entry is None and force)
    replace = ("--force",) if stale and not step.keep_json else ()
    started_s = time.monotonic()
    try:
        text = run_python(
            [*step.arguments, *replace, *((INTERNAL_OPTION,) if step.keep_json else ())], capture=step.keep_json
        )
    finally:
        begun = begun.model_copy(update={"seconds": begun.seconds + time.monotonic() - started_s})
        ledger.record(step, begun)
    if step.keep_json:
        write_text(step.output, text)
    made = fingerprint(step.output)
    if made is None:
        raise ShearlingError(
            "the command ended well and made nothing", where=step.output, remedy="Run again with --debug and report it"
        )
    ledger.record(step, begun.model_copy(update={"output": made, "replaced": None}))
    return begun.seconds


def show_command(arguments: Sequence[str]) -> str:
    """The command as a user would type it."""
    return shlex.join(["python", *arguments])


def run_python(arguments: Sequence[str], *, capture: bool) -> str:
    """Run this interpreter; its log, and its screen unless captured, go to stderr.

    Returns:
        Its stdout where `capture` is set, else nothing.

    Raises:
        ShearlingError: of the class that belongs to its exit code.
        KeyboardInterrupt, Terminated: it was interrupted, or we were; the child has ended by then.
    """
    log.print(f"$ {show_command(arguments)}", style="cyan")
    # The stages of this project, and not those of the directory that this happens to run in.
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-P", *arguments],
        stdout=subprocess.PIPE if capture else sys.stderr,
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
    )
    try:
        text, _ = process.communicate()
    except BaseException as reason:
        # At Ctrl-C the terminal has told the child already, which then saves its work; a second signal would cut that
        # short.
        _stop(process, told=isinstance(reason, KeyboardInterrupt))
        raise
    code = process.returncode
    if code in (130, -2):
        raise KeyboardInterrupt
    if code in (143, -15):
        raise Terminated
    if code != 0:
        error = ERRORS.get(code, ShearlingError)
        raise error(
            f"the command ended with exit code {code}",
            where=show_command(arguments),
            remedy="Its error is above; the demo continues there",
        )
    return text or ""


def _stop(process: subprocess.Popen[str], *, told: bool) -> None:
    if not told:
        process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
