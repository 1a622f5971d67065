"""Many requests at once on a real pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.bench.concurrency import LoadWork, measure_load, write_load_curve
from serve.bench.screen import load_screen
from serve.runtimes.runtime import RunOptions
from shearling.artefact import open_artefact
from shearling.errors import ArtefactMissing, UsageError
from shearling.target import Target

OPTIONS = RunOptions(precision="fp32", threads=1)


def test_every_level_completes_its_requests(export: Path, tmp_path: Path) -> None:
    curve = measure_load(
        Target(export), LoadWork(concurrency=[4, 1], requests=3, prompt_tokens=16, new_tokens=8), options=OPTIONS
    )
    assert [(level.concurrency, level.requests) for level in curve.levels] == [(1, 3), (4, 8)]
    for level in curve.levels:
        assert level.tokens_per_s == pytest.approx(8 * level.requests / level.wall_s)
        assert 0 < level.ttft_s["p50"] <= level.ttft_s["p99"] < level.wall_s
        assert 0 < level.tpot_s["p50"] <= level.tpot_s["p99"] < level.wall_s
    assert load_screen(curve)
    write_load_curve(tmp_path / "load", curve)
    open_artefact(tmp_path / "load", kind="benchmark")


@pytest.mark.parametrize(
    ("concurrency", "requests", "prompt", "match"),
    [([], 1, 4, "at least one"), ([0], 1, 4, "at least one"), ([1], 0, 4, "at least one"), ([1], 1, 250, "exceed")],
)
def test_work_that_cannot_be_done(export: Path, concurrency: list[int], requests: int, prompt: int, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        measure_load(
            Target(export),
            LoadWork(concurrency=concurrency, requests=requests, prompt_tokens=prompt, new_tokens=8),
            options=OPTIONS,
        )


def test_only_openvino_batches_continuously(export: Path) -> None:
    with pytest.raises(ArtefactMissing, match="not openvino"):
        measure_load(
            Target(export / "onnx"),
            LoadWork(concurrency=[1], requests=1, prompt_tokens=4, new_tokens=4),
            options=OPTIONS,
        )
    with pytest.raises(UsageError, match="only OpenVINO is measured here, not onnx"):
        measure_load(
            Target(export, format="onnx"),
            LoadWork(concurrency=[1], requests=1, prompt_tokens=4, new_tokens=4),
            options=OPTIONS,
        )
