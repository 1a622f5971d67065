"""What `DIR@PROMPT_LOOKUP=N` and `DIR@DRAFT=DIR` ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shearling.errors import UsageError
from shearling.registry.runtimes import DRAFT

PROMPT_LOOKUP, GUESSES = "PROMPT_LOOKUP", "GUESSES"
PROPERTIES = {PROMPT_LOOKUP, DRAFT, GUESSES}
FEWEST, MOST = 1, 64
USUAL = 4
"""Guesses of a draft for one reading, where nobody says."""


@dataclass(frozen=True)
class Speculation:
    """Where guesses come from.

    Attributes:
        most: for one reading.
        draft: a smaller model that makes them; None looks them up in the text.
    """

    most: int
    draft: Path | None = None

    @property
    def summary(self) -> str:
        """In words."""
        source = "prompt lookup" if self.draft is None else f"draft {self.draft}"
        return f"{source}, up to {self.most} guesses"


def read_speculation(properties: Mapping[str, str], *, label: str) -> Speculation | None:
    """What the properties of a deployment ask for; None where they do not.

    Args:
        properties: of the runtime.
        label: of the deployment, in the error.

    Raises:
        UsageError: both, neither with a number of guesses, or such a number that is none.
    """
    lookup, draft = properties.get(PROMPT_LOOKUP), properties.get(DRAFT)
    if lookup is not None and (draft is not None or GUESSES in properties):
        raise UsageError(
            f"{PROMPT_LOOKUP} goes with neither {DRAFT} nor {GUESSES}",
            where=label,
            remedy=f"Write @{PROMPT_LOOKUP}={USUAL}, or @{DRAFT}=DIR,{GUESSES}={USUAL}",
        )
    if lookup is not None:
        return Speculation(_count(PROMPT_LOOKUP, lookup, label=label))
    if draft is not None:
        return Speculation(_count(GUESSES, properties.get(GUESSES, str(USUAL)), label=label), Path(draft))
    if GUESSES in properties:
        raise UsageError(f"{GUESSES} says of whom none", where=label, remedy=f"Add {DRAFT}=DIR")
    return None


def speculates(properties: Mapping[str, str]) -> bool:
    """Whether several tokens may come of one reading."""
    return not PROPERTIES.isdisjoint(properties)


def without_speculation(properties: Mapping[str, str]) -> dict[str, str]:
    """The others."""
    return {name: value for name, value in properties.items() if name not in PROPERTIES}


def _count(name: str, value: str, *, label: str) -> int:
    if not value.isdecimal() or not FEWEST <= int(value[:9]) <= MOST:
        raise UsageError(
            f"{name} is {value!r}, not a number of guesses", where=label, remedy=f"Give {FEWEST} to {MOST}"
        )
    return int(value)
