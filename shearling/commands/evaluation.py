"""`shearling evaluate`: several models on several tasks."""

from __future__ import annotations

from collections.abc import Sequence

from shearling.command_line import Result
from shearling.evaluation.precision import Precision
from shearling.evaluation.scoreboard import parse_tasks, score_models, scoreboard_screen
from shearling.evaluation.task import Split
from shearling.executors.executor import Workforce
from shearling.target import Target


def evaluate_models(
    targets: Sequence[Target],
    *,
    tasks: str,
    split: Split,
    limit: int | None,
    batch_size: int,
    precision: Precision,
    workforce: Workforce,
) -> Result:
    """Measure and compare; see `parse_tasks` for how tasks are written, and `score_models` for the rest."""
    board = score_models(
        targets,
        tasks=parse_tasks(tasks),
        split=split,
        limit=limit,
        batch_size=batch_size,
        precision=precision,
        workforce=workforce,
    )
    return Result(board.model_dump(mode="json"), scoreboard_screen(board))
