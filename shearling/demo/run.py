"""Carrying out the demo: every step shown before it runs, timed, and skipped where it is done already."""

from __future__ import annotations

import shutil
from pathlib import Path

from shearling.command_line import Result
from shearling.console import log
from shearling.demo.layout import RECIPES, DemoLayout
from shearling.demo.outcome import read_outcome
from shearling.demo.plan import Action, Scale, plan_demo
from shearling.demo.report import render_report
from shearling.demo.screen import closing_screen
from shearling.demo.step import Ledger, carry_out
from shearling.errors import ArtefactMissing, ResourceExhausted
from shearling.strict_json import write_document, write_text

SMOKE_SHARE = 0.3
"""Time of a smoke run, as a share of a full one."""

DISK_BYTES = 7 * 10**9
"""What a demo leaves behind: a dozen copies of 135 million float32 weights; smoke runs too."""


def run_demo(out: Path, *, scale: Scale, force: bool) -> Result:
    """Do all steps, then write `summary.json` and `report.html`.

    Args:
        out: the directory of the demo; what is there already and fits is kept.
        scale: `smoke` goes the same road in a fraction of the time, for tests.
        force: replace what stands there and was not made by the demo.

    Raises:
        ArtefactMissing: the recipes are not beside the package.
        ResourceExhausted: too little disk for a new demo.
        ShearlingError: whatever a step refuses; see `carry_out`.
    """
    if not RECIPES.is_dir():
        raise ArtefactMissing(
            "the recipes are not here",
            where=RECIPES,
            remedy="Run the demo from a checkout, or from an editable install of one",
        )
    layout = DemoLayout(out)
    _check_disk(layout)
    out.mkdir(parents=True, exist_ok=True)
    actions = plan_demo(layout, scale)
    ledger = Ledger(layout.ledger)
    pace = _Pace(SMOKE_SHARE if scale == "smoke" else 1.0)
    for number, action in enumerate(actions, start=1):
        left = pace.estimate(actions[number - 1 :])
        log.print(f"\nstep {number} of {len(actions)}, {left}: {action.step.title}", style="bold", markup=False)
        action.prepare()
        seconds = carry_out(action.step, ledger, force=force)
        if seconds is not None:
            log.print(f"done in {seconds:.0f} s", style="dim")
            pace.add(action, seconds)
    seconds_of = {
        action.step.title: entry.seconds for action in actions if (entry := ledger.find(action.step)) is not None
    }
    outcome = read_outcome(layout, scale=scale, seconds=seconds_of)
    write_document(layout.summary, outcome)
    write_text(layout.report, render_report(outcome))
    return Result(
        {"report": str(layout.report), **outcome.model_dump(mode="json", by_alias=True)},
        closing_screen(outcome, layout),
    )


def _check_disk(layout: DemoLayout) -> None:
    if layout.ledger.is_file():
        # Begun already: what is missing then is unknown, and each stage checks for itself.
        return
    existing = next(parent for parent in (layout.path.resolve(), *layout.path.resolve().parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < DISK_BYTES:
        raise ResourceExhausted(
            f"the demo needs {DISK_BYTES / 1e9:.0f} GB of disk, {free_bytes / 1e9:.1f} GB are free",
            where=layout.path,
            remedy="Choose another --out",
        )


class _Pace:
    """How fast this machine is, against the expectation of the plan."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._expected_s = self._taken_s = 0.0

    def add(self, action: Action, seconds: float) -> None:
        self._expected_s += action.step.expected_s
        self._taken_s += seconds

    def estimate(self, remaining: list[Action]) -> str:
        factor = self._taken_s / self._expected_s if self._expected_s else self._share
        minutes = factor * sum(action.step.expected_s for action in remaining) / 60
        return f"about {max(1, round(minutes))} min left"
