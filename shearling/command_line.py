"""The frame around every command: results on stdout, one-line errors, exit codes, signals.

A command is a typer function that returns a `Result`. The frame prints the screen for people, or, with `--json`,
exactly one JSON object; it turns every `ShearlingError` into its exit code and anything else into 5.

Exit codes: 0 done, 1 a check failed, 2 usage or recipe, 3 bad artefact, 4 environment, 5 internal, 130 / 143
interrupted.
"""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import math
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar

import click
import typer
from rich.console import Console, RenderableType

from shearling.console import log
from shearling.departure import departure
from shearling.errors import (
    CheckFailed,
    PackageMissing,
    PackageShadowed,
    ResourceExhausted,
    ShearlingError,
    UsageError,
)
from shearling.resources import memory_exhausted

INTERRUPTED = 130
HOW_TO_GO_ON = (
    "run the same command again: it goes on with what was finished and kept, or begins anew; with --force only if an "
    "earlier output still stands"
)
STAGES = ("train", "search", "export", "serve")

LARGEST_SEED = 2**32 - 1
"""That NumPy's generators take."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of the screen.")]
DebugFlag = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ForceFlag = Annotated[
    bool, typer.Option("--force", help="Replace an existing output; removes only files that its manifest lists.")
]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Show what it would take of memory and disk, and do nothing.")
]


Given = TypeVar("Given")


@dataclass(frozen=True)
class Result:
    """What a command found out.

    Attributes:
        data: the JSON object of `--json`.
        screen: the same for people: a text, printed as it is, or anything that rich can print.
    """

    data: Mapping[str, Any]
    screen: RenderableType


class Terminated(BaseException):
    """SIGTERM arrived; unwinds like KeyboardInterrupt so that every `finally` runs."""


def next_step(*arguments: str) -> str:
    """What to do next, as it may be pasted into a shell: the arguments of the interpreter."""
    return f"next: {shlex.join(['python', *arguments])}"


def make_app(help_text: str) -> typer.Typer:
    """A typer application without shell-completion clutter or its own tracebacks."""
    return typer.Typer(
        help=help_text,
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        rich_markup_mode=None,
    )


def require(value: Given | None, option: str) -> Given:
    """An option that a stage cannot do without, but its subcommands can, so that typer must not ask for it.

    Raises:
        UsageError: it was left out.
    """
    if value is None:
        raise UsageError(f"missing option '{option}'", remedy="Give it, or see --help")
    return value


def run_command(app: typer.Typer, *, program: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run `app` and leave the process with the right exit code.

    Args:
        app: the application of one stage.
        program: the name shown in usage lines, such as `python -m export`.
        argv: arguments without the program name; default `sys.argv[1:]`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json, debug = "--json" in arguments, "--debug" in arguments
    quiet_libraries()
    _show_what_can_be_shown()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        refuse_shadowed_stages()
        _refuse_other_bytes(arguments)
        command = typer.main.get_command(app)
        _refuse_no_numbers(command)
        result = command.main(args=arguments, prog_name=program, standalone_mode=False)
        if isinstance(result, Result):
            print_result(result, as_json=as_json)
        code = result if isinstance(result, int) else 0
        # typer turns KeyboardInterrupt into this code by itself, without a word.
        if code == INTERRUPTED:
            log.print(f"interrupted: {HOW_TO_GO_ON}")
    except click.exceptions.NoArgsIsHelpError as error:
        log.print(error.format_message())
        code = 2
    except click.ClickException as error:
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else program
        remedy = f"See: {asked} --help"
        code = _report(
            ShearlingError(error.format_message().rstrip("."), remedy=remedy), code=2, as_json=as_json, debug=debug
        )
    except ShearlingError as error:
        code = _report(error, code=error.exit_code, as_json=as_json, debug=debug)
    except (KeyboardInterrupt, click.Abort) as error:
        code = _leave(error, as_json=as_json, debug=debug)
    except Terminated:
        log.print(f"terminated: {HOW_TO_GO_ON}")
        code = 143
    except OSError as error:
        code = _report(explain_os_error(error), code=4, as_json=as_json, debug=debug)
    except Exception as error:  # the last resort of the program: anything unforeseen is a defect of ours
        fault = _explain_unforeseen(error)
        code = _report(fault, code=fault.exit_code, as_json=as_json, debug=debug)
    departure.code = code
    sys.exit(code)


class _NumberRange(click.FloatRange):
    """A range that holds numbers alone: `nan` is neither below nor above anything."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return found


def _refuse_no_numbers(command: click.Command) -> None:
    """Of every option of a command and its subcommands that has a range."""
    for parameter in command.params:
        own = parameter.type
        if type(own) is click.FloatRange:
            parameter.type = _NumberRange(own.min, own.max, own.min_open, own.max_open, own.clamp)
    for subcommand in command.commands.values() if isinstance(command, click.Group) else ():
        _refuse_no_numbers(subcommand)


def print_result(result: Result, *, as_json: bool) -> None:
    """Print `result` on stdout: one JSON object, or the screen.

    Raises:
        OSError: it cannot be written. A reader that has gone, such as `head`, has seen what it wanted.
    """
    with suppress(BrokenPipeError), _standard_output():
        print(_as_text(result, as_json=as_json), flush=True)


def print_piece(text: str) -> None:
    """Write a piece of an answer to stdout at once.

    Raises:
        OSError: it cannot be written. Where its reader has gone the rest is written to nowhere.
    """
    try:
        with _standard_output():
            print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_other_bytes(arguments: Sequence[str]) -> None:
    """Every document is UTF-8 and tells paths: what none of them can hold is refused before the work.

    Raises:
        UsageError: names the argument.
    """
    for argument in arguments:
        shown = argument.encode(errors="backslashreplace").decode()
        if shown != argument:
            raise UsageError(f"this argument is not UTF-8: {shown}", remedy="Rename the file, or convert the text")


def _show_what_can_be_shown() -> None:
    """Of a text that stdout cannot encode, such as one of ASCII alone, question marks stand for the rest."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def _standard_output() -> Iterator[None]:
    """Names it where it cannot be written. Where the process was given none, `print` writes to nowhere."""
    try:
        yield
    except OSError as error:
        error.filename = "standard output"
        raise


def refuse_shadowed_stages(stages: Sequence[str] = STAGES) -> None:
    """Check that the stage packages, whose names are common words, are this project's own.

    Raises:
        PackageShadowed: one of them would be imported from another root.
    """
    own_root = Path(__file__).resolve().parent.parent
    is_checkout = (own_root / "pyproject.toml").is_file()
    elsewhere = f"Run from {own_root}" if is_checkout else "Run from another directory"
    for stage, root in stage_roots(stages).items():
        if root is not None and root != own_root:
            raise PackageShadowed(
                f"the package '{stage}' would be imported from {root}, not from this project",
                where=own_root,
                remedy=f"{elsewhere}, use shearling-train, -search, -export and -serve, which work anywhere, or take "
                f"{root} off PYTHONPATH",
            )


def stage_roots(stages: Sequence[str] = STAGES) -> dict[str, Path | None]:
    """Where Python would import each stage from; None where it finds none."""
    roots: dict[str, Path | None] = {}
    for stage in stages:
        spec = importlib.util.find_spec(stage)
        locations = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
        roots[stage] = Path(locations[0]).resolve().parent if locations else None
    return roots


def quiet_libraries() -> None:
    """Keep the libraries off the network, silent about themselves, and without telemetry."""
    for name in (
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_HUB_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "TQDM_DISABLE",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Who imports one of these does without where it is not installed, which None says. The first takes the absence of a
    # file in the home directory for consent, and forks this process for each message; the others are of no use for
    # text, and transformers imports them all the same: a tenth of the time that a command needs to begin.
    for module in ("openvino_telemetry", "torchao", "torchvision"):
        sys.modules.setdefault(module, None)  # type: ignore[arg-type] # typeshed knows modules alone


def share_processors() -> None:
    """Let threads that wait for others spin for microseconds and then sleep, before a library with threads is loaded;
    what the user has set stays.

    GNU's runtime, which torch brings, spins for milliseconds otherwise, on a processor that the thread it waits for may
    need: beside one other busy process on two processors a step of training took ten times as long. Where threads sleep
    at once, waking them costs two threads nearly all that they gain (docs/performance.md has both).
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel's and LLVM's, which counts milliseconds


def _as_text(result: Result, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"status": "ok", **result.data}, indent=2, allow_nan=False)
    if isinstance(result.screen, str):
        # Rich would wrap its lines, and read markup in it.
        return result.screen
    console = Console(highlight=False)
    # Rich would end the process with 1 where the reader has gone.
    with console.capture() as captured:
        console.print(result.screen)
    return captured.get().removesuffix("\n")


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _leave(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Say why a command was left; click takes the end of any file for the end of what a user types."""
    if isinstance(error.__cause__, EOFError):
        return _report(_explain_unforeseen(error.__cause__), code=5, as_json=as_json, debug=debug)
    log.print(f"interrupted: {HOW_TO_GO_ON}")
    return INTERRUPTED


def _explain_unforeseen(error: Exception) -> ShearlingError:
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name and name not in ("shearling", *STAGES):
        return PackageMissing(
            f"the package {name} is not installed",
            remedy="Install the extra cpu or gpu, in a checkout by pip install -e '.[cpu]'; guard is serve check alone",
        )
    return memory_exhausted(error) or ShearlingError(
        f"internal error: {type(error).__name__}: {error}", remedy="Run again with --debug and report the traceback"
    )


def explain(error: Exception) -> ShearlingError:
    """Any error as what a command ends with."""
    if isinstance(error, ShearlingError):
        return error
    return explain_os_error(error) if isinstance(error, OSError) else _explain_unforeseen(error)


def explain_os_error(error: OSError) -> ShearlingError:
    """What the system refused, for users."""
    where = error.filename or None
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceExhausted(
            f"cannot write: {error.strerror}", where=where, remedy="Free disk space and run the same command again"
        )
    told = f"{type(error).__name__}: {error.strerror or error}"
    if error.errno in (errno.ENOMEM, errno.EAGAIN):
        return ResourceExhausted(
            told, where=where, remedy="Raise the limits of this process (ulimit -v, -u), or use a larger machine"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceExhausted(told, where=where, remedy="Raise the limit of open files: ulimit -n 65536")
    return ShearlingError(told, where=where, remedy=None if where is None else "Check the path and its permissions")


def _report(error: ShearlingError, *, code: int, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exc(file=sys.stderr)
    if as_json:
        body = {"error": type(error).__name__, "message": error.message, "where": error.where, "remedy": error.remedy}
        result = error.result if isinstance(error, CheckFailed) else {}
        # It may be stdout that fails; the code and the line on stderr say what happened.
        with suppress(OSError):
            print(json.dumps({"status": "error", "exit_code": code, **body, **result}, indent=2), flush=True)
    log.print(f"error: {error}", style="red")
    return code
