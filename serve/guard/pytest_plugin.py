"""Latency regression tests for pytest, in a few lines.

    def test_the_new_export_is_not_slower(latency_guard):
        latency_guard.assert_not_slower("build/new", than="build/old")

The fixture comes with the installed project (`shearling.pytest_entry`). It passes and fails like `python -m serve
check`; inconclusive fails, too, and says so. Checks of all processes of a machine take turns, those of pytest-xdist
included.

The project under test may have a package `serve` of its own: ours is imported in `own_stage` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shearling.own_stage import own_stage

if TYPE_CHECKING:
    from serve.bench.workload import Workload
    from serve.guard.calibration import Calibration
    from serve.guard.regression import Verdict
    from serve.guard.reports import CheckRecord
    from serve.runtimes.runtime import RunOptions
    from shearling.target import Target

ALLOWED = ("max_ratio", "budget_s", "max_load_ratio", "max_memory_ratio", "allow_other_tokens")
"""What the mark `latency` may say."""
NOISE = 0.1
"""Differences of equal work above which a test that asks for quiet is skipped."""
SENT = "shearling_latency"
"""Under which a process of pytest-xdist hands its checks to the one that reports."""


@dataclass
class LatencySession:
    """What the tests of one process have measured.

    Attributes:
        calibration: once a test has asked for it.
        test: the one that runs.
        marks: its marks `latency`, the nearest last. They are read where the guard is used: elsewhere a mark of this
            name is that of another project.
    """

    records: list[CheckRecord] = field(default_factory=list)
    calibration: Calibration | None = None
    test: str = ""
    marks: Sequence[pytest.Mark] = ()
    skipped: int = 0


SESSION = pytest.StashKey[LatencySession]()


@dataclass(frozen=True)
class LatencyGuard:
    """Checks with the settings of one test session.

    Attributes:
        config: of pytest.
        verdicts: of all checks so far, in their order.
    """

    config: pytest.Config
    verdicts: list[Verdict] = field(default_factory=list)

    def assert_not_slower(
        self,
        candidate: str | Path | Target,
        *,
        than: str | Path | Target,
        max_ratio: float | None = None,
        budget_s: float | None = None,
        max_load_ratio: float | None = None,
        max_memory_ratio: float | None = None,
        allow_other_tokens: bool | None = None,
        options: RunOptions | Mapping[str, Any] | None = None,
        workload: Workload | Mapping[str, Any] | None = None,
    ) -> Verdict:
        """Fail the test unless the candidate takes at most `max_ratio` of the reference's time, first token and
        decode alike.

        What is None is taken from the mark `latency` of the test, else from the command line, else it is what
        `python -m serve check` does.

        Args:
            candidate: an export or model directory; `DIR@NAME=VALUE` as on the command line.
            than: the reference, likewise.
            max_ratio: largest acceptable candidate time over reference time.
            budget_s: seconds after which an open verdict is inconclusive.
            max_load_ratio: of the time to load, which is measured only then.
            max_memory_ratio: of peak memory.
            allow_other_tokens: in another environment.
            options: how both run, `{"threads": 2}` for example; by default on the CPU with one thread.
            workload: `{"prompt_tokens": 512}`, for example; by default that of `python -m serve check`. The budget of a
                `Workload` counts where `budget_s` is None.

        Raises:
            AssertionError: slower, other tokens, or inconclusive.
            UsageError: a limit or a budget that is no positive number.
            ShearlingError: something cannot be measured.
        """
        given = dict(
            zip(ALLOWED, (max_ratio, budget_s, max_load_ratio, max_memory_ratio, allow_other_tokens), strict=True)
        )
        session = self.config.stash[SESSION]
        chosen = {**_asked_for(self.config), **_marked(session), **{k: v for k, v in given.items() if v is not None}}
        with own_stage("serve"):
            from serve.guard.telling import require_pass
            from shearling.errors import CheckFailed

            verdict = self._check(candidate, than, chosen, options, workload, keep_budget=budget_s is None)
            try:
                require_pass(verdict)
            except CheckFailed as error:
                raise AssertionError(f"{candidate} against {than}: {error}") from None
        return verdict

    def _check(
        self,
        candidate: str | Path | Target,
        reference: str | Path | Target,
        chosen: dict[str, Any],
        options: RunOptions | Mapping[str, Any] | None,
        workload: Workload | Mapping[str, Any] | None,
        *,
        keep_budget: bool,
    ) -> Verdict:
        from serve.bench.workload import Workload
        from serve.guard.regression import Demands, check_regression, guard_workload
        from serve.guard.reports import record_of
        from serve.runtimes.runtime import RunOptions
        from shearling.command_line import explain
        from shearling.target import parse_target

        session = self.config.stash[SESSION]
        seconds = chosen.pop("budget_s", None)
        work = workload if isinstance(workload, Workload) else guard_workload(**(workload or {}))
        if seconds is not None and not (isinstance(workload, Workload) and keep_budget):
            work = work.model_copy(update={"budget_s": guard_workload(budget_s=seconds).budget_s})
        names = {"name": session.test or "latency", "candidate": str(candidate), "reference": str(reference)}
        try:
            found = check_regression(
                parse_target(candidate),
                parse_target(reference),
                demands=Demands(**chosen),
                options=options if isinstance(options, RunOptions) else RunOptions(**{"threads": 1, **(options or {})}),
                workload=work,
            )
        except Exception as error:
            session.records.append(record_of(explain(error), **names))
            raise
        session.records.append(record_of(found, **names))
        self.verdicts.append(found[0])
        return found[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the guard."""
    group = parser.getgroup("latency")
    group.addoption("--latency-report", metavar="FILE.html", help="write all latency checks as a page")
    group.addoption("--latency-max-ratio", type=float, metavar="RATIO", help="what a check allows if nothing else says")
    group.addoption("--latency-budget", type=float, metavar="SECONDS", help="of a check if nothing else says")
    group.addoption(
        "--latency-noise", type=float, metavar="SHARE", help=f"above which latency_quiet skips (default: {NOISE})"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marks of the guard; a report that could not be written is refused now, not when all is measured."""
    report = config.getoption("--latency-report")
    if report:
        from shearling.destination import require_writable
        from shearling.errors import UsageError

        try:
            require_writable(Path(report), whole=True)
        except UsageError as error:
            raise pytest.UsageError(f"--latency-report: {error}") from None
    config.stash[SESSION] = LatencySession()
    config.addinivalue_line("markers", f"latency({', '.join(ALLOWED)}): what the latency_guard of this test allows")
    config.addinivalue_line(
        "markers", "latency_quiet(noise): skip where a calibration says that the machine is noisier"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep the marks of a test, and skip it on a machine that is too noisy for it."""
    session = item.config.stash[SESSION]
    session.test, session.marks = item.nodeid, list(reversed(list(item.iter_markers("latency"))))
    quiet = item.get_closest_marker("latency_quiet")
    if quiet is None:
        return
    asked = item.config.getoption("--latency-noise")
    limit = quiet.kwargs.get("noise", quiet.args[0] if quiet.args else NOISE if asked is None else asked)
    found = _calibrate(session)
    if found.noise > limit:
        session.skipped += 1
        pytest.skip(f"this machine is too noisy for latency: {found.told()} (the limit is {limit:.0%})")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the checks over, or write the page."""
    config = session.config
    own = config.stash[SESSION]
    output = getattr(config, "workeroutput", None)
    if output is not None:
        output[SENT] = {
            "records": [record.model_dump_json() for record in own.records],
            "calibration": own.calibration and own.calibration.model_dump_json(),
            "skipped": own.skipped,
        }


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A process of pytest-xdist has ended: take its checks."""
    sent = getattr(node, "workeroutput", {}).get(SENT)
    if not sent:
        return
    own = node.config.stash[SESSION]
    own.skipped += sent["skipped"]
    with own_stage("serve"):
        from serve.guard.calibration import Calibration
        from serve.guard.reports import CheckRecord

        own.records += [CheckRecord.model_validate_json(text) for text in sent["records"]]
        if sent["calibration"]:
            own.calibration = Calibration.model_validate_json(sent["calibration"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how noisy the machine was, how the checks ended, with what other settings, and where the page is."""
    own = config.stash[SESSION]
    path = config.getoption("--latency-report")
    # Where tests are collected alone there is nothing to report of.
    if config.option.collectonly or (not own.records and own.calibration is None and not path):
        return
    with own_stage("serve"):
        lines = _summary(own, None if path is None else Path(path))
    terminalreporter.section("latency")
    for line in lines:
        terminalreporter.write_line(line)


def _summary(own: LatencySession, path: Path | None) -> list[str]:
    """What the session found; writes its page."""
    from serve.guard.reports import outcome_counts, write_report

    lines = []
    if own.calibration is not None:
        skipped = f"; {own.skipped} tests were skipped for it" if own.skipped else ""
        lines.append(f"calibration: {own.calibration.told()}{skipped}")
    if own.records:
        lines.append("checks: " + ", ".join(f"{count} {name}" for name, count in outcome_counts(own.records).items()))
        # pytest shows nothing of a test that passes.
        for record in own.records:
            lines += [f"{record.name}: {change}" for change in (record.verdict.changes if record.verdict else ())]
    if path:
        write_report(path, own.records, notes=lines[:1] if own.calibration else [])
        lines.append(f"report: {path}")
    return lines


@pytest.fixture(scope="session")
def latency_guard(request: pytest.FixtureRequest) -> LatencyGuard:
    """Checks that one model is not slower than another."""
    return LatencyGuard(request.config)


def _asked_for(config: pytest.Config) -> dict[str, Any]:
    options = {"max_ratio": "--latency-max-ratio", "budget_s": "--latency-budget"}
    found = {name: config.getoption(option) for name, option in options.items()}
    return {name: value for name, value in found.items() if value is not None}


def _marked(session: LatencySession) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mark in session.marks:
        strange = sorted(set(mark.kwargs) - set(ALLOWED))
        if strange or mark.args:
            raise pytest.UsageError(
                f"{session.test}: latency takes {', '.join(ALLOWED)} by name, not {strange or mark.args}"
            )
        found |= {name: value for name, value in mark.kwargs.items() if value is not None}
    return found


def _calibrate(session: LatencySession) -> Calibration:
    if session.calibration is None:
        with own_stage("serve"):
            from serve.guard.calibration import calibrate
            from serve.guard.machine_lock import measuring_alone

            with measuring_alone():
                session.calibration = calibrate()
    return session.calibration
