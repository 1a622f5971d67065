"""What a command is told to run or to evaluate: `DIR`, and behind an `@` what holds for it alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shearling.errors import UsageError
from shearling.registry.runtimes import RUNTIMES

AUTO = "auto"
"""The first format there is of those that run on the device."""
PROPERTY = re.compile(r"[A-Z][A-Z0-9_]*")
FORMAT, ENVIRONMENT = "format", "environment"
SETTINGS = re.compile(r"@(?=[A-Za-z_][A-Za-z0-9_]*=)")
"""Where settings begin: paths in them may hold an `@` of their own."""


@dataclass(frozen=True)
class Target:
    """A model to run or to evaluate, as a user names it; what is there is found by those who open it.

    Attributes:
        path: an artefact, a part of one, a bare model directory, or a model that is one file.
        format: a name of `RUNTIMES`, or `AUTO`.
        properties: of the runtime, for this model alone.
        environment: virtual environment with the runtime; None is the one that runs.
        written: as the user wrote it; None stands for the path.
    """

    path: Path
    format: str = AUTO
    properties: Mapping[str, str] = field(default_factory=dict)
    environment: Path | None = None
    written: str | None = None

    @property
    def label(self) -> str:
        """What messages and tables call it."""
        return self.written or str(self.path)

    def with_format(self, choice: str) -> Target:
        """The same in this format, unless it names one itself."""
        return dataclasses.replace(self, format=choice) if self.format == AUTO else self

    def only(self, required: str) -> Target:
        """The same in the one format that a command can do.

        Raises:
            UsageError: it names another.
        """
        if self.format not in (AUTO, required):
            raise UsageError(
                f"only {RUNTIMES.get(required).title} is measured here, not {self.format}",
                where=self.label,
                remedy=f"Leave the format out, and give an export with {required}",
            )
        return self.with_format(required)


def read_switch(properties: Mapping[str, str], name: str, *, default: bool) -> bool:
    """What a property of a runtime says that is on or off.

    Args:
        properties: of a target.
        name: of the property.
        default: where it is not among them.

    Raises:
        UsageError: its value is neither YES nor NO.
    """
    asked = properties.get(name, "YES" if default else "NO")
    if asked not in ("YES", "NO"):
        raise UsageError(f"it is YES or NO, not {asked}", where=name, remedy=f"Give {name}=YES or {name}=NO")
    return asked == "YES"


def parse_target(argument: str | Path | Target) -> Target:
    """Read `DIR`, `DIR@format=onnx`, `DIR@PROPERTY=VALUE,PROPERTY=VALUE` or `FILE.gguf@environment=DIR`.

    A path that exists is taken as it is, whatever it looks like.

    Raises:
        UsageError: the part behind the `@` is malformed, or names an unknown format.
    """
    if isinstance(argument, Target):
        return argument
    written = str(argument)
    begins = [found.start() for found in SETTINGS.finditer(written)] or [written.rfind("@")]
    path, settings = written[: begins[-1]], written[begins[-1] + 1 :]
    if begins[-1] < 0 or "=" not in settings or Path(argument).exists():
        return Target(Path(argument))
    pairs = [part.partition("=")[::2] for part in settings.split(",")]
    values = dict(pairs)
    properties = {name: value for name, value in pairs if name not in (FORMAT, ENVIRONMENT)}
    if len(values) < len(pairs) or not all(values.values()) or not all(map(PROPERTY.fullmatch, properties)):
        raise UsageError(
            f"cannot read the settings {settings!r}",
            where=written,
            remedy=f"Write DIR@NAME=VALUE,NAME=VALUE: each name once, {FORMAT}, {ENVIRONMENT}, or a property of the "
            "runtime in capital letters",
        )
    choice = values.get(FORMAT, AUTO)
    if choice != AUTO:
        RUNTIMES.get(choice, where=written)
    environment = Path(values[ENVIRONMENT]) if ENVIRONMENT in values else None
    return Target(Path(path), choice, properties, environment, written)
