"""Carrying out a demo: every step shown before it runs, timed, and skipped where it is done already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shearling.console import log
from shearling.demo.derived_recipe import RECIPES
from shearling.demo.stage_steps import Action, Scale
from shearling.demo.step import Ledger, carry_out
from shearling.errors import ArtefactMissing

SMOKE_SHARE = 0.3
"""Time of a smoke run, as a share of a full one."""
SLOW_MACHINE = 1.75
"""How much longer it has taken on two cores of a server than on those that the steps expect."""


def check_recipes() -> None:
    """The shipped recipes are beside the package, or nothing can begin.

    Raises:
        ArtefactMissing: they are not.
    """
    if not RECIPES.is_dir():
        raise ArtefactMissing(
            "the recipes are not here",
            where=RECIPES,
            remedy="Run the demo from a checkout, or from an editable install of one",
        )


def walk(actions: Sequence[Action], ledger_path: Path, *, scale: Scale, force: bool) -> dict[str, float]:
    """Do all steps in order.

    Args:
        actions: of the demo.
        ledger_path: where it is kept which steps are done.
        scale: for the estimate of the time left.
        force: replace what stands there and was not made by the demo.

    Returns:
        Title of each step -> seconds that it took, all sittings together.

    Raises:
        ShearlingError: whatever a step refuses; see `carry_out`.
    """
    ledger, pace = Ledger(ledger_path), _Pace(SMOKE_SHARE if scale == "smoke" else 1.0)
    for number, action in enumerate(actions, start=1):
        left = pace.estimate(actions[number - 1 :])
        log.print(f"\nstep {number} of {len(actions)}, {left}: {action.step.title}", style="bold")
        action.prepare()
        seconds = carry_out(action.step, ledger, force=force)
        if seconds is not None:
            log.print(f"done in {seconds:.0f} s", style="dim")
            pace.add(action, seconds)
    records = {action.step.title: ledger.find(action.step) for action in actions}
    return {title: record.seconds for title, record in records.items() if record is not None}


class _Pace:
    """How fast this machine is, against the expectation of the plan."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._expected_s = self._taken_s = 0.0

    def add(self, action: Action, seconds: float) -> None:
        self._expected_s += action.step.expected_s
        self._taken_s += seconds

    def estimate(self, remaining: Sequence[Action]) -> str:
        expected = sum(action.step.expected_s for action in remaining) / 60
        if self._expected_s:
            return f"about {max(1, round(expected * self._taken_s / self._expected_s))} min left"
        least, most = (max(1, round(expected * self._share * factor)) for factor in (1.0, SLOW_MACHINE))
        return f"{least} to {most} min left"
