"""What `python -m serve check` and `bisect` do: a candidate against a reference, or many versions against the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from serve.bench.benchmark import Benchmark
from serve.bench.workload import Workload
from serve.guard.baseline import check_baseline
from serve.guard.bisection import Bisection, Installation, bisect_versions
from serve.guard.regression import Demands, Verdict, check_regression
from serve.guard.reports import CheckRecord, append_summary, record_of, write_junit
from serve.runtimes.runtime import RunOptions
from shearling.command_line import explain
from shearling.destination import require_writable
from shearling.errors import ShearlingError, UsageError
from shearling.target import Target


@dataclass
class Reports:
    """Files for CI.

    Attributes:
        junit: XML, written anew; what an earlier check left there goes first, or it would be taken for this one's.
        summary: Markdown, appended to.
        written: whether they say what became of this command.
    """

    junit: Path | None = None
    summary: Path | None = None
    written: bool = field(default=False, init=False)

    @contextmanager
    def whatever_comes(self, *, name: str, candidate: str, reference: str) -> Iterator[None]:
        """Refuse now what would lose the verdict later, and write what prevents one where nobody else does.

        Args:
            name: of the check.
            candidate: its label.
            reference: likewise.

        Raises:
            UsageError: a file could not be written.
        """
        self._begin_junit()
        try:
            self._begin_summary()
            yield
        except Exception as error:
            if not self.written:
                self.write([record_of(explain(error), name=name, candidate=candidate, reference=reference)])
            raise

    def __post_init__(self) -> None:
        # As from a variable of CI that is not set elsewhere.
        self.summary = None if self.summary == Path() else self.summary

    def _begin_junit(self) -> None:
        if self.junit is not None:
            require_writable(self.junit, whole=True)
            self.junit.unlink(missing_ok=True)

    def _begin_summary(self) -> None:
        # Where it cannot be written, the other says so.
        summary, self.summary = self.summary, None
        if summary is not None:
            require_writable(summary)
        self.summary = summary

    def write(self, records: list[CheckRecord]) -> None:
        """Write those that were asked for."""
        self.written = True
        if self.junit is not None:
            write_junit(self.junit, records)
        if self.summary is not None:
            append_summary(self.summary, records)


def check_model(
    candidate: Target,
    *,
    reference: Target | None,
    baseline: Path | None,
    record: bool,
    allow_other_versions: bool,
    demands: Demands,
    options: RunOptions,
    workload: Workload,
    reports: Reports,
) -> tuple[Verdict, Benchmark]:
    """Judge a candidate.

    Args:
        candidate: what may have become slower.
        reference: is measured beside it; see `check_regression`.
        baseline: its history, instead; see `check_baseline`, also for the rest.
        record: add this measurement to the history.
        allow_other_versions: of runtimes.
        demands: what the candidate has to keep.
        options: the same for both.
        workload: the same for both.
        reports: are written with the verdict; see `Reports.whatever_comes`.

    Raises:
        UsageError: not exactly one of `reference` and `baseline`, or what the one that is given knows nothing of.
        ShearlingError: it cannot be measured.
    """
    if record and baseline is None:
        raise UsageError("--record has nowhere to write", remedy="Give --baseline FILE")
    if (reference is None) == (baseline is None):
        raise UsageError("a check needs one reference", remedy="Give either --against DIR or --baseline FILE")
    if baseline is not None and not (demands.max_load_ratio is None and demands.max_memory_ratio is None):
        raise UsageError(
            "a baseline holds neither load times nor memory",
            remedy="Give --against DIR, or leave --max-load-ratio and --max-memory-ratio out",
        )
    if baseline is not None and demands.allow_other_tokens:
        raise UsageError("a baseline holds no tokens to compare", remedy="Leave --allow-other-tokens out")
    if reference is not None and allow_other_versions:
        raise UsageError(
            "--allow-other-versions is of --baseline; a reference is measured anew",
            remedy="Leave it out: two environments may hold different versions",
        )
    if reference is not None:
        found = check_regression(candidate, reference, demands=demands, options=options, workload=workload)
    elif baseline is not None:
        found = check_baseline(
            candidate,
            baseline,
            max_ratio=demands.max_ratio,
            options=options,
            workload=workload,
            record=record,
            allow_other_versions=allow_other_versions,
        )
    reports.write([record_of(found, **names_of_check(candidate, reference, baseline))])
    return found


def names_of_check(candidate: Target, reference: Target | None, baseline: Path | None) -> dict[str, str]:
    """What reports call a check and its two sides."""
    against = str(baseline or "nothing") if reference is None else reference.label
    return {"name": f"{candidate.label} against {against}", "candidate": candidate.label, "reference": against}


def find_first_slower(
    target: Target,
    *,
    versions: Sequence[str],
    installation: Installation,
    demands: Demands,
    options: RunOptions,
    workload: Workload,
    reports: Reports,
) -> Bisection:
    """Measure one model under versions of its runtime, until the first slower one is found.

    Args:
        target: the model; in no environment of its own.
        versions: the reference first.
        installation: how the environments are made.
        demands: what a version has to keep.
        options: the same for all.
        workload: of each check.
        reports: one record for each check, or for what prevents it.

    Raises:
        UsageError: an environment was given.
        ShearlingError: see `bisect_versions`.
    """
    if target.environment is not None:
        raise UsageError(
            "the environments are made here", where=target.label, remedy="Leave environment= out, or use check"
        )
    records: list[CheckRecord] = []

    def check(candidate: Path, reference: Path, version: str) -> tuple[Verdict, CheckRecord]:
        sides = [
            dataclasses.replace(target, environment=place, written=f"{target.label} in {place.name}")
            for place in (candidate, reference)
        ]
        names = {
            "name": f"{installation.package} {version} against {versions[0]}",
            "candidate": sides[0].label,
            "reference": sides[1].label,
        }
        try:
            found = check_regression(sides[0], sides[1], demands=demands, options=options, workload=workload)
        except (ShearlingError, OSError) as error:
            records.append(record_of(explain(error), **names))
            raise
        records.append(record_of(found, **names))
        return found[0], records[-1]

    try:
        return bisect_versions(versions, installation, check)
    except (ShearlingError, OSError) as error:
        # Where no check has failed, an environment has.
        if all(record.verdict is not None for record in records):
            names = {"candidate": target.label, "reference": versions[0]}
            records.append(record_of(explain(error), name=f"{installation.package} {', '.join(versions)}", **names))
        raise
    finally:
        if records:
            reports.write(records)
