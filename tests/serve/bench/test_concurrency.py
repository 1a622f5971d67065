"""Many requests at once on a real pipeline."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openvino_genai import GenerationStatus
from rich.console import Console, RenderableType

from serve.bench import concurrency as module
from serve.bench.concurrency import LoadWork, measure_load, write_load_curve
from serve.bench.screen import load_screen
from serve.bench.stage import parse_concurrency
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
    assert [row.split()[:2] for row in rows_of(load_screen(curve))] == [["1", "3"], ["4", "8"]]
    write_load_curve(tmp_path / "load", curve)
    open_artefact(tmp_path / "load", kind="benchmark")


def rows_of(screen: RenderableType) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(screen)
    return [line for line in console.export_text().splitlines() if line.strip()[:1].isdigit() and " / " in line]


def test_what_few_requests_cannot_tell_is_not_shown(export: Path) -> None:
    measured = measure_load(
        Target(export), LoadWork(concurrency=[1], requests=1, prompt_tokens=4, new_tokens=2), options=OPTIONS
    )
    (level,) = measured.levels
    spread = {"p50": 0.98765, "p90": 9.87654, "p99": 98.7654}
    levels = [
        level.model_copy(update={"concurrency": 128, "requests": requests, "ttft_s": spread, "tpot_s": spread})
        for requests in (9, 10, 99, 100)
    ]
    shown = rows_of(load_screen(measured.model_copy(update={"levels": tuple(levels)})))
    p50, p90, p99 = "987.6", "9877", "98765"
    wanted = [[p50, "-", "-"], [p50, p90, "-"], [p50, p90, "-"], [p50, p90, p99]]
    assert [[part for part in row.split()[3:] if part != "/"] for row in shown] == [spreads * 2 for spreads in wanted]


class TokenAStep:
    """Stands in for the pipeline: every request makes one token a step, a step takes a second."""

    def __init__(self) -> None:
        self.flying: list[Request] = []
        self.widths: list[int] = []
        self.ends: list[int] = []

    def step(self) -> None:
        self.flying = [request for request in self.flying if request.left > 0]
        self.widths.append(len(self.flying))
        for request in self.flying:
            request.left -= 1
        self.ends.append(sum(request.left == 0 for request in self.flying))

    def seconds(self) -> float:
        return float(len(self.widths))


class Request:
    def __init__(self, tokens: int) -> None:
        self.tokens = self.left = tokens

    def get_status(self) -> GenerationStatus:
        return GenerationStatus.RUNNING if self.left else GenerationStatus.FINISHED

    def cancel(self) -> None:
        self.left = 0

    def get_perf_metrics(self) -> Any:
        mean = SimpleNamespace(mean=1.0)
        return SimpleNamespace(
            get_num_generated_tokens=lambda: self.tokens, get_ttft=lambda: mean, get_tpot=lambda: mean
        )


@pytest.mark.parametrize(("in_flight", "tokens"), [(1, 8), (4, 8), (3, 8), (8, 64), (12, 4)])
def test_requests_are_at_different_places_and_the_level_is_full_to_its_end(
    monkeypatch: pytest.MonkeyPatch, in_flight: int, tokens: int
) -> None:
    pipeline: Any = TokenAStep()
    prompts: Any = None

    def add(_pipeline: Any, _prompts: Any, _number: int, new_tokens: int) -> Request:
        pipeline.flying.append(Request(new_tokens))
        return pipeline.flying[-1]

    monkeypatch.setattr(module, "_add", add)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=pipeline.seconds))
    level = module._run_level(pipeline, prompts, in_flight, 5 * in_flight, tokens, lambda **_: None)
    assert set(pipeline.widths[:-1]) == {in_flight}
    assert level.tokens_per_s == in_flight
    assert level.requests == 5 * in_flight
    assert max(pipeline.ends[:-1]) == -(-in_flight // tokens)
    assert all(request.left == 0 for request in pipeline.flying)


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


@pytest.mark.parametrize("text", ["", "1,,2", "one", "-1", "9" * 5000, "4097", "1,1000000"])
def test_numbers_of_requests_that_cannot_be_read_or_are_too_many_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"cannot read the numbers of requests|requests at once"):
        parse_concurrency(text)
    assert parse_concurrency("1, 8,4096") == [1, 8, 4096]


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
