"""The demo of elastic widths, from nothing to its report."""

from __future__ import annotations

from pathlib import Path

from shearling.command_line import Result
from shearling.demo.lonas.layout import LonasLayout, ModelKind
from shearling.demo.lonas.outcome import read_outcome
from shearling.demo.lonas.plan import plan_demo
from shearling.demo.lonas.report import render_report
from shearling.demo.lonas.screen import closing_screen
from shearling.demo.stage_steps import Scale
from shearling.demo.walk import check_recipes, walk
from shearling.destination import require_directory
from shearling.strict_json import write_document, write_text


def run_demo(output: Path, *, kind: ModelKind, scale: Scale, seed: int, force: bool) -> Result:
    """Do all steps, then write `summary.json` and `report.md`.

    Args:
        output: the directory of the demo; what is there already and fits is kept.
        kind: which model.
        scale: `smoke` goes the same road in a fraction of the time, for tests.
        seed: of the recipes.
        force: replace what stands there and was not made by the demo.

    Raises:
        ArtefactMissing: the recipes are not beside the package.
        UsageError: the directory is a file, or may not be written.
        ShearlingError: whatever a step refuses; see `carry_out`.
    """
    check_recipes()
    require_directory(output)
    layout = LonasLayout(output)
    output.mkdir(parents=True, exist_ok=True)
    seconds = walk(plan_demo(layout, kind, scale, seed=seed), layout.ledger, scale=scale, force=force)
    outcome = read_outcome(layout, kind, seed=seed, seconds=seconds)
    write_document(layout.summary, outcome)
    write_text(layout.report, render_report(outcome))
    return Result({"report": str(layout.report), **outcome.model_dump(mode="json")}, closing_screen(outcome, layout))
