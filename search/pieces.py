"""A measurement in pieces: so many rows of one candidate, which a worker does in one go.

Where a measurement is cut follows from its rows alone, not from the number of workers, nor from what was interrupted
when. A batch never crosses a cut, so that the same rows stand in the same batches, and rounding is the same, whoever
measures them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search.strategies.grid import Indices

PIECE_ROWS = 64
"""Most rows of a piece: at 75 ms a row (135 million weights, one core) it takes five seconds, beside which it does not
count what handing it out costs."""


@dataclass(frozen=True)
class Piece:
    """What is asked of a worker.

    Attributes:
        indices: the candidate, or FROZEN.
        start: position of the first row, see `RowSplit`.
        stop: of the row after the last.
    """

    indices: Indices
    start: int
    stop: int

    @property
    def positions(self) -> range:
        """Of its rows."""
        return range(self.start, self.stop)


@dataclass(frozen=True)
class PieceOutcome:
    """What was measured.

    Attributes:
        accuracy: share of right answers, 0 to 1.
        accuracy_stderr: as the task gives it.
        loss: mean over the rows, nats; None where the task does not show it.
        answers: per row how right the answer was, 0 to 1.
        losses: per row, nats, to six digits.
        seconds: wall time.
    """

    accuracy: float
    accuracy_stderr: float | None
    loss: float | None
    answers: tuple[float, ...]
    losses: tuple[float, ...] | None
    seconds: float


def cut(indices: Indices, positions: range) -> list[Piece]:
    """The pieces of a measurement, in the order of its rows."""
    starts = range(positions.start, positions.stop, PIECE_ROWS)
    return [Piece(indices, start, min(start + PIECE_ROWS, positions.stop)) for start in starts]


def join(outcomes: Sequence[PieceOutcome]) -> PieceOutcome:
    """What the pieces of a measurement say together.

    Args:
        outcomes: at least one, in the order of their rows, all of the same candidate.
    """
    first = outcomes[0]
    if len(outcomes) == 1:
        return first
    answers = tuple(answer for outcome in outcomes for answer in outcome.answers)
    losses = join_losses([outcome.losses for outcome in outcomes])
    return PieceOutcome(
        accuracy=math.fsum(answers) / len(answers),
        accuracy_stderr=standard_error(answers),
        loss=None if losses is None else math.fsum(losses) / len(losses),
        answers=answers,
        losses=losses,
        seconds=math.fsum(outcome.seconds for outcome in outcomes),
    )


def join_losses(parts: Sequence[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    """The losses of several rows; None where some are not known."""
    known = [part for part in parts if part is not None]
    return tuple(loss for part in known for loss in part) if len(known) == len(parts) else None


def standard_error(answers: Sequence[float]) -> float:
    """Of the mean of answers."""
    mean = math.fsum(answers) / len(answers)
    squares = math.fsum((answer - mean) ** 2 for answer in answers)
    return math.sqrt(squares / max(1, len(answers) - 1) / len(answers))
