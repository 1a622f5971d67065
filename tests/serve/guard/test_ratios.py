"""Latency as ratios of interleaved runs: never milliseconds, so that it holds on any machine and beside other work."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.bench.benchmark import run_benchmark
from serve.bench.workload import make_workload
from serve.runtimes.runtime import RunOptions
from shearling.target import Target
from tests.support.latency_models import write_layers

pytestmark = pytest.mark.alone

OPTIONS = RunOptions(precision="fp32", threads=1)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layers(tmp_path_factory.mktemp("latency") / "short", 2)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layers(tmp_path_factory.mktemp("latency") / "deep", 8)


def test_a_model_against_itself_is_as_fast(short: Path) -> None:
    benchmark = run_benchmark(
        [Target(short), Target(short)], options=OPTIONS, workload=make_workload(64, 32, repeats=15)
    )
    ratio = benchmark.subjects[1].ratios["tpot_s"]
    assert 0.8 < ratio.median < 1.25
    assert ratio.low < 1.1
    assert ratio.high > 0.9


def test_four_times_the_layers_are_slower_in_both_phases(short: Path, deep: Path) -> None:
    benchmark = run_benchmark([Target(short), Target(deep)], options=OPTIONS, workload=make_workload(64, 32, repeats=9))
    for metric in ("ttft_s", "tpot_s"):
        assert benchmark.subjects[1].ratios[metric].median > 1.3, metric
    assert benchmark.subjects[1].ratios["tpot_s"].low > 1.1


def test_the_first_token_is_never_a_prefix_cache_hit(short: Path) -> None:
    # OpenVINO GenAI keeps prefixes: a repeated prompt of 512 tokens costs little more than 1 token. Ours are drawn
    # anew.
    long_prompt = (
        run_benchmark([Target(short)], options=OPTIONS, workload=make_workload(512, 4, repeats=5)).subjects[0].metrics
    )
    assert long_prompt["ttft_s"].median > 5 * long_prompt["tpot_s"].median
