"""The verdict on invented samples: what passes, what fails, what stays open."""

from __future__ import annotations

import numpy as np
import pytest

from serve.bench.measurement import Sample
from serve.bench.time_budget import TimeBudget
from serve.guard.regression import SESSION_BLOCKS, guard_workload, judge
from serve.guard.sequential import planned_looks
from serve.guard.telling import require_pass
from shearling.errors import CheckFailed


def pairs(slowdown: float, *, blocks: int, noise: float, lost: float = 0.0, sessions: int = 2) -> list[Sample]:
    """Reference and candidate under common drift of 2x and own lognormal noise; `lost` goes to other processes on
    top."""
    generator = np.random.default_rng(11)
    samples = []
    for block in range(blocks):
        drift = 1 + generator.random()
        for subject, factor in enumerate((1.0, slowdown)):
            own_s = drift * factor * float(generator.lognormal(sigma=noise))
            lost_s = lost * float(generator.random())
            samples.append(
                Sample(
                    subject=subject,
                    session=block * sessions // blocks,
                    block=block,
                    position=subject,
                    started_s=0.0,
                    prompt_tokens=4,
                    batch=1,
                    ttft_s=own_s + lost_s,
                    gaps_s=(own_s + lost_s,),
                    total_s=2 * (own_s + lost_s),
                    waited_s=2 * lost_s,
                    lost_first_s=lost_s,
                    lost_decode_s=lost_s,
                )
            )
    return samples


def test_equal_speed_passes_in_spite_of_drift() -> None:
    verdict = judge(pairs(1.0, blocks=20, noise=0.01), max_ratio=1.05)
    assert verdict.outcome == "pass"
    require_pass(verdict)


def test_time_that_others_took_is_subtracted() -> None:
    verdict = judge(pairs(1.0, blocks=20, noise=0.01, lost=10.0), max_ratio=1.05)
    assert verdict.outcome == "pass"
    assert verdict.lost_share > 0.5


def test_ten_percent_is_a_regression() -> None:
    verdict = judge(pairs(1.1, blocks=20, noise=0.01), max_ratio=1.05)
    assert verdict.outcome == "regression"
    with pytest.raises(CheckFailed, match=r"regression against 1\.05 after 20 pairs"):
        require_pass(verdict)


def test_noise_wider_than_the_threshold_is_never_a_pass() -> None:
    verdict = judge(pairs(1.0, blocks=20, noise=0.5), max_ratio=1.05)
    assert verdict.outcome == "inconclusive"
    with pytest.raises(CheckFailed, match="inconclusive"):
        require_pass(verdict)


@pytest.mark.parametrize(("blocks", "sessions"), [(8, 2), (40, 1)])
def test_too_few_pairs_or_one_pair_of_processes_decide_nothing(blocks: int, sessions: int) -> None:
    assert judge(pairs(5.0, blocks=blocks, noise=0.001, sessions=sessions), max_ratio=1.05).outcome == "inconclusive"


def test_nothing_is_decided_between_the_looks() -> None:
    first = planned_looks()[0]
    assert judge(pairs(5.0, blocks=first - 1, noise=0.001), max_ratio=1.05, ended=False).outcome == "inconclusive"
    assert judge(pairs(5.0, blocks=first, noise=0.001), max_ratio=1.05, ended=False).outcome == "regression"


def test_the_first_look_has_seen_two_pairs_of_processes() -> None:
    assert planned_looks()[0] >= 2 * SESSION_BLOCKS > 0
    workload = guard_workload()
    assert workload.repeats * workload.sessions >= planned_looks()[-1]


def test_time_is_spent_on_new_processes_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("serve.bench.time_budget.time.monotonic", lambda: now_s)
    budget = TimeBudget(40.0)

    def session(setup_s: float, blocks: int) -> None:
        nonlocal now_s
        budget.begin_session()
        now_s += setup_s
        budget.end_setup()
        for _ in range(blocks):
            now_s += 1
            budget.count_block()

    session(6.0, 7)
    assert not budget.restarts(8, first=True)
    now_s += 1
    budget.count_block()
    assert budget.restarts(8, first=True)
    # Slow processes: the first session ends early rather than be the only one.
    now_s += 6
    assert budget.restarts(20, first=True)
    assert not budget.restarts(20, first=False)
    # What is left does not pay another loading: the same processes go on.
    session(6.0, 8)
    assert not budget.restarts(8, first=False)
    assert not budget.spent()
    now_s += 10
    assert budget.spent()
