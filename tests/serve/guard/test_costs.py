"""Load time, memory, tokens and noise, on invented figures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from serve.bench.measurement import Sample
from serve.bench.statistics import Estimate
from serve.guard.calibration import calibrate, typical_difference
from serve.guard.costs import check_load, judge_load, judge_memory, load_settling_budget_s
from serve.guard.regression import LOAD, MEMORY, Verdict
from serve.guard.telling import how_to_settle
from serve.guard.tokens import compare_tokens
from serve.runtimes.deployment import find_deployment
from serve.runtimes.runtime import RunOptions
from shearling.target import parse_target


def memory(candidate: list[int], reference: list[int]) -> SimpleNamespace:
    return SimpleNamespace(subjects=[SimpleNamespace(session_peaks_bytes=peaks) for peaks in (reference, candidate)])


@pytest.mark.parametrize(
    ("candidate", "outcome"),
    [([104, 105], "pass"), ([120, 121], "regression"), ([104, 121], "inconclusive"), ([150], "inconclusive")],
)
def test_memory_is_judged_where_all_pairs_agree(candidate: list[int], outcome: str) -> None:
    found, ratio = judge_memory(memory(candidate, [100] * len(candidate)), max_ratio=1.1)
    assert found == outcome
    assert (ratio.low, ratio.high) == (min(candidate) / 100, max(candidate) / 100)


def test_load_times_are_judged_at_their_looks_and_not_before() -> None:
    slow = [(1.0 + 0.01 * place, 2.0 + 0.03 * place) for place in range(20)]
    assert judge_load(slow[:8], max_ratio=1.5, ended=False)[0] == "inconclusive"
    assert judge_load(slow[:8], max_ratio=1.5, ended=True)[0] == "inconclusive"
    assert judge_load(slow[:9], max_ratio=1.5, ended=False)[0] == "regression"
    assert judge_load([(one, one) for one, _ in slow], max_ratio=1.5, ended=False)[0] == "pass"


def test_rounds_that_cannot_decide_say_how_many_can_and_how_long_they_take(export: Path) -> None:
    sides = [find_deployment(parse_target(f"{export}@format=onnx"))] * 2
    benchmark = SimpleNamespace(
        subjects=[SimpleNamespace(deployment=side) for side in sides], options=RunOptions(threads=1)
    )
    # One round is made, however short the time.
    outcome, ratio = check_load(benchmark, max_ratio=1.2, budget_s=1e-6)
    assert (outcome, ratio.samples) == ("inconclusive", 1)
    assert load_settling_budget_s(ratio, budget_s=10.0) == 90.0


def test_open_load_times_and_memory_are_not_said_to_be_open_latencies() -> None:
    ratios = {name: Estimate(median=1.0, low=0.9, high=1.1, samples=4) for name in ("tpot_s", LOAD, MEMORY)}
    verdict = Verdict(
        outcome="inconclusive",
        outcomes={"tpot_s": "pass", LOAD: "inconclusive", MEMORY: "pass"},
        ratios=ratios,
        sessions=(1.0, 1.0, 1.0),
        max_ratio=1.05,
        blocks=30,
        lost_share=0.0,
        settling_budget_s=120.0,
    )
    assert how_to_settle(verdict) == "4 rounds of loading decide nothing, 9 may: --budget 120 or more"
    assert "--max-load-ratio" in how_to_settle(verdict.model_copy(update={"settling_budget_s": None}))
    memory_open = {**verdict.outcomes, LOAD: "pass", MEMORY: "inconclusive"}
    assert "--max-memory-ratio" in how_to_settle(verdict.model_copy(update={"outcomes": memory_open}))


def answer(subject: int, block: int, tokens: tuple[int, ...]) -> Sample:
    times = dict.fromkeys(("ttft_s", "total_s", "started_s", "lost_first_s", "lost_decode_s"), 1.0)
    shape = {"session": 0, "position": 0, "prompt_tokens": 4, "batch": 1, "gaps_s": (1.0,), "waited_s": None}
    return Sample(subject=subject, block=block, token_ids=tokens, **times, **shape)


@pytest.mark.parametrize(
    ("found", "differing", "first"),
    [((1, 2, 3), 0, None), ((1, 2, 4), 1, 3), ((9, 2, 3), 1, 1), ((1, 2), 1, 3), ((1, 2, 3, 4), 1, 4)],
)
def test_the_earliest_difference_is_found(found: tuple[int, ...], differing: int, first: int | None) -> None:
    samples = [answer(0, 0, (1, 2, 3)), answer(1, 0, found), answer(1, 1, (5, 6)), answer(0, 1, (5, 6))]
    agreement = compare_tokens(samples, allowed=False)
    assert (agreement.prompts, agreement.differing, agreement.first) == (2, differing, first)
    assert agreement.kept == (differing == 0)


def test_every_row_of_a_batch_that_both_tell_is_compared() -> None:
    told = [
        answer(subject, 0, (1, 2)).model_copy(update={"batch": 3, "other_rows": rows})
        for subject, rows in ((0, ((3, 4), (5, 6))), (1, ((3, 4), (5, 7))))
    ]
    agreement = compare_tokens(told, allowed=False)
    assert (agreement.prompts, agreement.differing, agreement.first, agreement.kept) == (3, 1, 2, False)
    assert agreement.told() == "other tokens for 1 of 3 prompts, the earliest at token 2"
    silent = [told[0], told[1].model_copy(update={"other_rows": ()})]
    assert compare_tokens(silent, allowed=False).told() == "the same tokens for the 1 answers that both sides tell"


@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_the_noise_of_equal_work_is_that_of_its_pairs(noise: float) -> None:
    generator = np.random.default_rng(4)
    drift = np.repeat(np.exp(np.linspace(0, 1, 2000)), 2)
    times = drift * np.exp(generator.normal(scale=noise / np.sqrt(2), size=4000))
    times[::50] *= 10  # outliers
    assert typical_difference(times.tolist()) == pytest.approx(noise, rel=0.1)


def test_a_calibration_measures_something() -> None:
    found = calibrate(0.2)
    assert found.pairs >= 2
    assert 0 <= found.noise < 10
    assert 0 <= found.lost_share <= 1
    assert f"{found.noise:.1%}" in found.told()
