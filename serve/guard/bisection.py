"""Which release of a runtime was the first that is slower?

The first of a list of versions is the reference; the last is compared with it, and where that is slower, the middle of
what is left in doubt, until two neighbours are left. As with `git bisect`, what became slower is taken to stay so.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from serve.guard.machine_lock import locked
from serve.guard.regression import TOKENS, CheckOutcome, Verdict, worst
from serve.guard.reports import CheckRecord
from serve.guard.telling import how_to_settle
from shearling.console import log
from shearling.errors import CheckFailed, UsageError
from shearling.strict_json import Document, read_document, write_document
from shearling.virtual_environment import from_anywhere, make_environment, remove_environment

VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!_-]*")
PACKAGE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")
RECORD = "shearling-environment.json"


class Bisection(Document):
    """What became of a list of versions.

    Attributes:
        versions: in the order given.
        outcomes: of those that were measured against the first one.
        checks: the same, in the order of time.
        first_slower: the first version that fails as the last one does; None where that passes, or nothing is clear.
        last_good: the last version that is known not to fail so.
        known_slower: the first version that is known to; `first_slower`, or a later one where a check stayed open.
    """

    package: str
    versions: tuple[str, ...]
    outcomes: dict[str, CheckOutcome]
    checks: tuple[CheckRecord, ...]
    first_slower: str | None
    last_good: str | None
    known_slower: str | None = None

    @property
    def passed(self) -> bool:
        """The last version is not slower."""
        return self.outcomes[self.versions[-1]] == "pass"


@dataclass(frozen=True)
class Installation:
    """How the environment of a version is made.

    Attributes:
        package: what is looked at.
        also: further requirements; `{version}` stands for the version.
        python: that makes it; None is the one that runs.
        directory: keeps the environments, and those in it are used again; None throws them away.
    """

    package: str
    also: tuple[str, ...] = ("numpy",)
    python: Path | None = None
    directory: Path | None = None

    def requirements(self, version: str) -> list[str]:
        """What pip installs."""
        also = (from_anywhere(text.replace("{version}", version)) for text in self.also)
        return [f"{self.package}=={version}", *also]

    @property
    def interpreter(self) -> Path | None:
        """See `python`; from anywhere."""
        return None if self.python is None else Path(from_anywhere(str(self.python)))


class KeptEnvironment(Document):
    """What an environment says of itself.

    Attributes:
        requirements: what pip was asked for.
        python: that made it.
        finished: pip has installed everything.
    """

    requirements: tuple[str, ...]
    python: str
    finished: bool = False

    @property
    def digest(self) -> str:
        """Tells environments of one version apart."""
        held = json.dumps([*self.requirements, self.python])
        return hashlib.sha256(held.encode()).hexdigest()[:8]


def parse_versions(text: str) -> list[str]:
    """Read `2026.2.1,2026.3.1,2026.4.1`.

    Raises:
        UsageError: fewer than two, one twice, or something that is no version.
    """
    versions = [part.strip() for part in text.split(",")]
    if len(versions) < 2 or len(set(versions)) < len(versions) or not all(map(VERSION.fullmatch, versions)):
        raise UsageError(
            f"cannot read the versions {text!r}",
            remedy="Give two or more, the oldest first: --versions 2026.2.1,2026.3.1,2026.4.1",
        )
    return versions


def bisect_versions(
    versions: Sequence[str], installation: Installation, check: Callable[[Path, Path, str], tuple[Verdict, CheckRecord]]
) -> Bisection:
    """Find the first slower version.

    Args:
        versions: the reference first; the order is that in which they appeared.
        installation: how their environments are made.
        check: measures a candidate's environment against the reference's; gets the version, too.

    Raises:
        UsageError: the package has no such name, or something else stands where an environment is kept.
        PackageMissing: pip cannot install a version.
        EnvironmentFault: environments cannot be locked there.
        ShearlingError: a version cannot be measured.
    """
    if not PACKAGE.fullmatch(installation.package):
        raise UsageError(
            f"no name of a package: {installation.package!r}", remedy="Give --package openvino, for example"
        )
    records: list[CheckRecord] = []
    outcomes: dict[str, CheckOutcome] = {}
    failing: set[str] = set()
    with ExitStack() as stack:
        root = installation.directory or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="shearling-bisect-"))
        )

        def measure(place: int) -> CheckOutcome:
            version = versions[place]
            log.print(f"measuring {installation.package} {version} against {versions[0]}")
            candidate, reference = (keep_environment(root, installation, each) for each in (version, versions[0]))
            verdict, record = check(candidate, reference, version)
            outcomes[version] = verdict.outcome
            records.append(record)
            log.print(f"{installation.package} {version}: {verdict.outcome}")
            if not failing:
                failing.update(_failing(verdict))
            return _answer(verdict, failing)

        bracket = _bracket(len(versions), measure)
    good, slow = (None, None) if bracket is None else (versions[bracket[0]], versions[bracket[1]])
    return Bisection(
        package=installation.package,
        versions=tuple(versions),
        outcomes=outcomes,
        checks=tuple(records),
        first_slower=slow if bracket and bracket[1] - bracket[0] == 1 else None,
        last_good=good,
        known_slower=slow,
    )


def keep_environment(root: Path, installation: Installation, version: str) -> Path:
    """The environment of a version: one that was made before, if it is finished, or a new one.

    Its directory is named after what it holds, so that a finished one is never removed. Of several who want one that is
    not finished, one makes it, and the others wait; the system releases the lock of a process that dies.

    Args:
        root: of environments.
        installation: how it is made.
        version: of the package.

    Raises:
        UsageError: what stands there was made by somebody else.
        PackageMissing: pip cannot install it.
        EnvironmentFault: there can be no lock.
    """
    making = KeptEnvironment(
        requirements=tuple(installation.requirements(version)), python=str(installation.interpreter or sys.executable)
    )
    finished = making.model_copy(update={"finished": True})
    directory = root / f"{installation.package}-{version}-{making.digest}"
    root.mkdir(parents=True, exist_ok=True)
    with locked(
        root / f"{directory.name}.lock",
        waiting=f"somebody else installs {directory.name}: waiting until it is finished",
        remedy="Give other --environments",
    ):
        if _record(directory) != finished:
            log.print(f"installing {installation.package} {version}")
            _make(directory, making, installation.interpreter)
    return directory


def _record(directory: Path) -> KeptEnvironment | None:
    path = directory / RECORD
    return read_document(path, KeptEnvironment) if path.is_file() else None


def _make(directory: Path, making: KeptEnvironment, python: Path | None) -> None:
    if _record(directory) is not None:
        remove_environment(directory)
    elif directory.exists() and not (directory.is_dir() and next(directory.iterdir(), None) is None):
        raise UsageError(
            "no record tells what it holds: somebody else made it",
            where=directory,
            remedy="Move it away, or give other --environments",
        )
    directory.mkdir(exist_ok=True)
    # Whoever is killed from here on leaves what says so.
    write_document(directory / RECORD, making)
    make_environment(directory, making.requirements, python=python)
    write_document(directory / RECORD, making.model_copy(update={"finished": True}))


def require_none_slower(found: Bisection) -> None:
    """Turn what was found into an error.

    Raises:
        CheckFailed: a version is slower, or a check was inconclusive.
    """
    if found.passed:
        return
    package, result = found.package, found.model_dump(mode="json")
    measured = list(found.outcomes)
    word = "changes its output" if found.outcomes[found.versions[-1]] == "changed" else "is slower"
    if found.first_slower is not None:
        also = [name for name, outcome in found.outcomes.items() if outcome == "changed" and word == "is slower"]
        told = f"; the output is another one in {', '.join(also)}" if also else ""
        raise CheckFailed(
            f"{package} {found.first_slower} is the first that {word}; {found.last_good} is not so{told}", result=result
        )
    known = f"; {found.known_slower} {word}, {found.last_good} is not so" if found.known_slower else ""
    verdict = found.checks[-1].verdict if found.checks else None
    raise CheckFailed(
        f"inconclusive for {package} {measured[-1]}{known}",
        remedy="Measure longer (--budget), or on a quieter machine" if verdict is None else how_to_settle(verdict),
        result=result,
    )


def _failing(verdict: Verdict) -> set[str]:
    """By what a version fails: its output, or else the figures that are worse."""
    if verdict.outcome == "changed":
        return {TOKENS}
    return {name for name, outcome in verdict.outcomes.items() if outcome == "regression"}


def _answer(verdict: Verdict, failing: Set[str]) -> CheckOutcome:
    """What a check says of that by which the last version fails; of everything, where that one does not."""
    if not failing:
        return verdict.outcome
    return worst(outcome for name, outcome in verdict.outcomes.items() if name in failing)


def _bracket(count: int, measure: Callable[[int], CheckOutcome]) -> tuple[int, int] | None:
    """Places of the last version that is known to pass and of the first that is known not to: neighbours, where no
    check between them stays open; None where the last one does not fail.
    """
    bad = {"regression", "changed"}
    if measure(count - 1) not in bad:
        return None
    good, slow = 0, count - 1
    while slow - good > 1:
        middle = (good + slow) // 2
        outcome = measure(middle)
        if outcome == "inconclusive":
            break
        good, slow = (good, middle) if outcome in bad else (middle, slow)
    return good, slow
