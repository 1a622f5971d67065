"""Everything that compiles an IR avoids the crash that is known, and says so.

Where the processor has AMX, what forgets it ends the process of this test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.formats.openvino import openvino_logits
from search.latency.stopwatch import Forward
from serve.bench.concurrency import LoadWork, measure_load
from serve.bench.forward import measure_forwards
from serve.runtimes.deployment import find_deployment
from serve.runtimes.runtime import Decoding, RunOptions, load_runtime
from shearling.evaluation.given_model import find_given_model
from shearling.kernel.loading import known_crash
from shearling.kernel.loading.known_crash import AVOIDED
from shearling.target import Target, parse_target
from tests.support.gated_blocks import gated_decoder, write_gated_block
from tests.support.once_per_run import writable_copy

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it

ONE = RunOptions(threads=1)


def generate(directory: Path) -> None:
    runtime = load_runtime(find_deployment(Target(directory)), ONE)
    assert runtime.facts.precision == "fp32"
    runtime.generate([[5, 6, 7]], Decoding(max_new_tokens=2))
    runtime.close()


def load(directory: Path) -> None:
    work = LoadWork(concurrency=(1,), requests=1, prompt_tokens=4, new_tokens=2)
    assert measure_load(Target(directory), work, options=ONE).facts.precision == "fp32"


def load_streams(directory: Path) -> None:
    work = LoadWork(concurrency=(1,), requests=1, prompt_tokens=4, new_tokens=2)
    measure_load(Target(directory), work, options=RunOptions(hint="throughput"))


def forward(directory: Path) -> None:
    write_gated_block(directory)
    measure_forwards([Target(directory)], tokens=8, blocks=2, threads=1)


def search_latency(directory: Path) -> None:
    Forward(directory / "openvino_model.xml", threads=1, tokens=4).sample_ms()


def evaluate(directory: Path) -> None:
    with find_given_model(parse_target(f"{directory}@INFERENCE_NUM_THREADS=1")).load("fp32") as model:
        assert model.scorer() is not None


def export(directory: Path) -> None:
    """As its default precision is looked at where there is one CPU."""
    blocks = [np.arange(5, 13)]
    assert len(list(openvino_logits(directory, blocks, config={"INFERENCE_NUM_THREADS": "1"}))) == 1


@pytest.mark.parametrize("way", [generate, load, load_streams, forward, search_latency, evaluate, export])
def test_it_computes_in_float32_and_says_so(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(known_crash, "_processor_has_amx", lambda: True)
    directory = writable_copy(gated_decoder(tmp_path_factory), tmp_path / "model")
    way(directory)
    assert capsys.readouterr().err.count(f"{directory}: {AVOIDED}") == 1
