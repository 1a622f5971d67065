"""Rows that did not become what their author meant: counted, and the first of them named."""

from __future__ import annotations

from typing import Literal, get_args

Reason = Literal["empty", "repeated", "contradicting", "cut", "unlabelled"]
WORDS: dict[Reason, str] = {
    "empty": "left out because they render to nothing",
    "repeated": "left out as repetitions",
    "contradicting": "left out because their prompt came before with another completion",
    "cut": "cut inside their completion",
    "unlabelled": "left out because nothing to learn is left of them",
}
NAMED = 3


class RowAccount:
    """What happened to rows, by reason."""

    def __init__(self) -> None:
        self._numbers: dict[Reason, list[int]] = {reason: [] for reason in get_args(Reason)}

    def note(self, reason: Reason, number: int) -> None:
        """Remember a row, counted from 1."""
        self._numbers[reason].append(number)

    @property
    def counts(self) -> dict[str, int]:
        """Rows by reason, those that occurred."""
        return {reason: len(numbers) for reason, numbers in self._numbers.items() if numbers}

    def sentence(self, total: int) -> str | None:
        """One line, such as `of 90 rows 2 left out as repetitions (7, 12)`; None where nothing occurred."""
        parts = [
            f"{len(numbers)} {WORDS[reason]} ({_named(numbers)})"
            for reason, numbers in self._numbers.items()
            if numbers
        ]
        return f"of {total} rows {', '.join(parts)}" if parts else None


def _named(numbers: list[int]) -> str:
    more = ["..."] if len(numbers) > NAMED else []
    return ", ".join([*map(str, numbers[:NAMED]), *more])
