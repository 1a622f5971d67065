"""The demo of pruning, from nothing to its page."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from shearling.command_line import Result
from shearling.demo.shears.layout import ShearsLayout
from shearling.demo.shears.outcome import read_outcome
from shearling.demo.shears.peers import check_peers
from shearling.demo.shears.plan import plan_demo
from shearling.demo.shears.report import render_accuracy_speed, render_report
from shearling.demo.shears.screen import closing_screen
from shearling.demo.stage_steps import Scale
from shearling.demo.walk import check_recipes, walk
from shearling.destination import require_directory
from shearling.errors import ResourceExhausted
from shearling.strict_json import write_document, write_text
from shearling.target import Target

DISK_BYTES = 5 * 10**9
"""A demo leaves 3.4 GB behind, smoke runs too; the rest is for what is being written."""


def run_demo(output: Path, *, scale: Scale, force: bool, peers: Sequence[Target] = ()) -> Result:
    """Do all steps, then write `summary.json`, `report.html` and `accuracy-speed.svg`.

    Args:
        output: the directory of the demo; what is there already and fits is kept.
        scale: `smoke` goes the same road in a fraction of the time, for tests.
        force: replace what stands there and was not made by the demo.
        peers: models to evaluate and to time beside it.

    Raises:
        ArtefactMissing: the recipes are not beside the package.
        UsageError: the directory is a file, or may not be written; a peer is named twice, or is the demo's own.
        ArtefactError: there is no model where a peer should be.
        ResourceExhausted: too little disk for a new demo.
        ShearlingError: whatever a step refuses; see `carry_out`.
    """
    check_recipes()
    require_directory(output)
    layout = ShearsLayout(output)
    check_peers(layout, peers)
    _check_disk(layout)
    output.mkdir(parents=True, exist_ok=True)
    seconds = walk(plan_demo(layout, scale, peers), layout.ledger, scale=scale, force=force)
    outcome = read_outcome(layout, scale=scale, seconds=seconds, peers=peers)
    write_document(layout.summary, outcome)
    write_text(layout.report, render_report(outcome))
    write_text(layout.chart, render_accuracy_speed(outcome))
    return Result(
        {"report": str(layout.report), **outcome.model_dump(mode="json", by_alias=True)},
        closing_screen(outcome, layout),
    )


def _check_disk(layout: ShearsLayout) -> None:
    if layout.ledger.is_file():
        # Begun already: what is missing then is unknown, and each stage checks for itself.
        return
    existing = next(parent for parent in (layout.path.resolve(), *layout.path.resolve().parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < DISK_BYTES:
        raise ResourceExhausted(
            f"the demo needs {DISK_BYTES / 1e9:.0f} GB of disk, {free_bytes / 1e9:.1f} GB are free",
            where=layout.path,
            remedy="Choose another --output",
        )
