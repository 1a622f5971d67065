"""The whole demo on the real model, small: every step, every result, and nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shearling.demo.shears.layout import ShearsLayout
from shearling.demo.shears.outcome import LABELS, ShearsOutcome
from shearling.demo.shears.stage import run_demo
from shearling.errors import ResourceExhausted
from shearling.strict_json import read_document

ROOT = Path(__file__).resolve().parents[3]


def _demo(out, *options):
    command = [sys.executable, "-m", "shearling", "demo", "--scale", "smoke", "--output", str(out), "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_too_little_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shearling.demo.shears.stage.DISK_BYTES", 10**18)
    with pytest.raises(ResourceExhausted, match="free"):
        run_demo(tmp_path / "demo", scale="smoke", force=False)
    assert not (tmp_path / "demo").exists()


@pytest.mark.pretrained
@pytest.mark.demo
@pytest.mark.timeout(1800)
def test_demo_from_nothing_to_report(tmp_path):
    layout = ShearsLayout(tmp_path / "demo")
    done = _demo(layout.path)
    assert done.returncode == 0, done.stderr[-4000:]
    answer = json.loads(done.stdout)
    assert answer["report"] == str(layout.report)
    outcome = read_document(layout.summary, ShearsOutcome)
    assert [row.role for row in outcome.rows] == list(LABELS)
    assert outcome.row("dense").sparsity < 0.01
    assert outcome.row("lora").sparsity is None
    for role in ("sparse", "ours", "packed"):
        assert outcome.row(role).sparsity == pytest.approx(0.5, abs=0.005), role
    # Every pruned weight stays zero through training, search and merge.
    assert outcome.row("ours").sparsity == pytest.approx(outcome.row("sparse").sparsity, abs=1e-6)
    assert outcome.row("packed").speed.weight_bytes < 0.8 * outcome.row("lora").speed.weight_bytes
    assert [row.role for row in outcome.rows if row.speed] == ["lora", "packed"]
    assert (outcome.row("lora").speed.own_operators, outcome.row("packed").speed.own_operators) == (False, True)
    assert outcome.row("sparse").bits_per_byte > outcome.row("dense").bits_per_byte
    assert any(candidate.best for candidate in outcome.candidates)
    assert all(len(losses) > 1 for losses in outcome.losses.values())
    assert "$ python -m train --recipe" in done.stderr

    again = _demo(layout.path)
    assert again.returncode == 0, again.stderr[-4000:]
    assert again.stderr.count("done already") == len(outcome.seconds)
    assert json.loads(again.stdout)["rows"] == answer["rows"]

    stock = f"{layout.run.export}@format=openvino"
    beside = _demo(layout.path, "--peer", stock)
    assert beside.returncode == 0, beside.stderr[-4000:]
    assert beside.stderr.count("done already") == len(outcome.seconds) - 2
    peer = read_document(layout.summary, ShearsOutcome).rows[-1]
    assert (peer.role, peer.label) == ("peer", "export")
    assert peer.accuracy == pytest.approx(outcome.row("ours").accuracy, abs=0.1)
    assert peer.speed.weight_bytes > 2 * outcome.row("packed").speed.weight_bytes
