"""Rows that did not become what their author meant: counted, and the first of them named."""

from __future__ import annotations

from typing import Literal, get_args

Reason = Literal["empty", "repeated", "contradicting", "last_turn", "cut", "cut_prompt", "unlabelled"]
WORDS: dict[Reason, str] = {
    "empty": "left out because they render to nothing",
    "repeated": "left out as repetitions",
    "contradicting": "left out because their prompt came before with another completion",
    "last_turn": "learnt in their last answer alone, since the chat template changes earlier ones",
    "cut": "cut inside their completion",
    "cut_prompt": "cut at their end",
    "unlabelled": "left out because nothing to learn is left of them",
}
NAMED = 3


class RowAccount:
    """What happened to rows, by reason."""

    def __init__(self) -> None:
        self._counts: dict[Reason, int] = dict.fromkeys(get_args(Reason), 0)
        self._named: dict[Reason, list[int]] = {reason: [] for reason in get_args(Reason)}

    def note(self, reason: Reason, number: int) -> None:
        """Remember a row, counted from 1."""
        self._counts[reason] += 1
        # The smallest, whatever the order in which they are found; millions are not kept.
        self._named[reason] = sorted([*self._named[reason], number])[:NAMED]

    @property
    def counts(self) -> dict[str, int]:
        """Rows by reason, those that occurred."""
        return {reason: count for reason, count in self._counts.items() if count}

    def sentence(self, total: int) -> str | None:
        """One line, such as `of 90 rows 2 left out as repetitions (7, 12)`; None where nothing occurred."""
        parts = [
            f"{count} {WORDS[reason]} ({_named(self._named[reason], count)})"
            for reason, count in self._counts.items()
            if count
        ]
        return f"of {total} rows {', '.join(parts)}" if parts else None


def _named(numbers: list[int], count: int) -> str:
    more = ["..."] if count > NAMED else []
    return ", ".join([*map(str, numbers), *more])
