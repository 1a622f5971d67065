"""What `python -m serve http` is told to serve: `NAME=DIR`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shearling.target import Target, parse_target

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")


@dataclass(frozen=True)
class NamedTarget:
    """A model, and what clients call it."""

    name: str
    target: Target


def parse_named_target(argument: str | NamedTarget) -> NamedTarget:
    """Read `NAME=DIR`, or `DIR`, whose name is the directory's; either with the settings of `Target`.

    Raises:
        UsageError: see `parse_target`.
    """
    if isinstance(argument, NamedTarget):
        return argument
    name, given, rest = argument.partition("=")
    if given and NAME.fullmatch(name) and not Path(argument).exists():
        return NamedTarget(name, parse_target(rest))
    target = parse_target(argument)
    return NamedTarget(target.path.resolve().name, target)
