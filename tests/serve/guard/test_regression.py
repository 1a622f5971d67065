"""The verdict on invented samples: what passes, what fails, what stays open."""

from __future__ import annotations

import numpy as np
import pytest

from serve.bench.measurement import Sample
from serve.bench.time_budget import TimeBudget
from serve.guard.regression import judge
from serve.guard.telling import how_to_settle, require_pass, tell_measuring
from shearling.errors import CheckFailed


def pairs(slowdown: float, *, blocks: int, noise: float, lost: float = 0.0, sessions: int = 4) -> list[Sample]:
    """Reference and candidate under common drift of 2x and own lognormal noise; `lost` goes to other processes on top,
    of the first token and of three in ten of those behind it."""
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
                    gaps_s=tuple(own_s + (lost_s if token % 3 == 1 else 0.0) for token in range(10)),
                    total_s=11 * own_s + 4 * lost_s,
                    waited_s=4 * lost_s,
                    lost_first_s=lost_s,
                    lost_decode_s=3 * lost_s,
                )
            )
    return samples


def test_equal_speed_passes_in_spite_of_drift() -> None:
    verdict = judge(pairs(1.0, blocks=20, noise=0.01), max_ratio=1.05)
    assert verdict.outcome == "pass"
    require_pass(verdict)


def test_time_that_others_took_does_not_count() -> None:
    verdict = judge(pairs(1.0, blocks=20, noise=0.01, lost=10.0), max_ratio=1.05)
    assert verdict.outcome == "pass"
    assert verdict.lost_share > 0.5
    assert judge(pairs(1.1, blocks=20, noise=0.01, lost=10.0), max_ratio=1.05).outcome == "regression"


def test_tokens_that_were_disturbed_do_not_count() -> None:
    quiet = pairs(1.0, blocks=1, noise=0.0)[0]
    assert quiet.usual_gap_s == pytest.approx(quiet.tpot_s)
    disturbed = quiet.model_copy(update={"gaps_s": tuple(9.0 if gap < 4 else quiet.gaps_s[gap] for gap in range(10))})
    assert disturbed.usual_gap_s == pytest.approx(quiet.usual_gap_s)
    slower = quiet.model_copy(update={"gaps_s": tuple(2 * gap for gap in quiet.gaps_s)})
    assert slower.usual_gap_s == pytest.approx(2 * quiet.usual_gap_s)
    assert quiet.model_copy(update={"gaps_s": (3.0,)}).usual_gap_s == 3.0


def slowed(samples: list[Sample], factors: list[float]) -> list[Sample]:
    """The candidate's tokens, each place by a factor of its own."""
    return [
        sample.model_copy(
            update={"gaps_s": tuple(gap * factor for gap, factor in zip(sample.gaps_s, factors, strict=True))}
        )
        if sample.subject == 1
        else sample
        for sample in samples
    ]


def test_tokens_that_are_slow_at_the_same_places_are_a_regression() -> None:
    """Three in ten take twice as long, which the faster ones do not show."""
    verdict = judge(
        slowed(pairs(1.0, blocks=24, noise=0.01), [2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]), max_ratio=1.05
    )
    assert verdict.outcomes == {"ttft_s": "pass", "tpot_s": "pass", "every_token_s": "regression"}
    assert verdict.ratios["every_token_s"].median == pytest.approx(1.3, rel=0.02)
    with pytest.raises(CheckFailed, match=r"every_token_s 1\.[23]\d\d \[.*\]: regression"):
        require_pass(verdict)
    # Four per cent of all are allowed, wherever they are lost.
    fair = judge(slowed(pairs(1.0, blocks=24, noise=0.01), [1.3] + [1.0] * 9), max_ratio=1.05)
    assert fair.outcomes == {"ttft_s": "pass", "tpot_s": "pass"}


def test_tokens_that_are_slow_at_other_places_each_time_are_no_regression() -> None:
    """So other work disturbs them: here, three in ten of the candidate alone."""
    generator = np.random.default_rng(5)
    disturbed = [
        sample.model_copy(
            update={
                "gaps_s": tuple(gap * (1 + 4 * (generator.random() < 0.3 * sample.subject)) for gap in sample.gaps_s)
            }
        )
        for sample in pairs(1.0, blocks=60, noise=0.01)
    ]
    assert judge(disturbed, max_ratio=1.05).outcome == "pass"


def test_where_tokens_are_guessed_the_lucky_ones_are_not_the_usual_ones() -> None:
    # Two readings of 8 ms, one of which made seven tokens.
    guessed = pairs(1.0, blocks=1, noise=0.0)[0].model_copy(
        update={"gaps_s": (8e-3 / 7,) * 7 + (8e-3,), "guessed": True}
    )
    assert guessed.usual_gap_s == pytest.approx(2e-3)


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


@pytest.mark.parametrize(("blocks", "sessions"), [(8, 2), (40, 1), (300, 2)])
def test_fewer_than_three_pairs_of_processes_decide_nothing(blocks: int, sessions: int) -> None:
    found = judge(pairs(5.0, blocks=blocks, noise=0.001, sessions=sessions), max_ratio=1.05)
    assert found.outcome == "inconclusive"
    assert "Three pairs of processes are the least" in how_to_settle(found)


def test_many_blocks_of_unequal_processes_decide_nothing() -> None:
    # Four pairs whose processes differ by luck, up and down: a thousand quiet blocks do not make that a regression.
    luck = [1.16, 0.95, 1.15, 1.1]
    samples = pairs(1.0, blocks=1000, noise=0.001)
    unlucky = [
        sample.model_copy(update={"gaps_s": tuple(luck[sample.session] * gap for gap in sample.gaps_s)})
        if sample.subject == 1
        else sample
        for sample in samples
    ]
    verdict = judge(unlucky, max_ratio=1.05)
    assert verdict.outcomes == {"ttft_s": "pass", "tpot_s": "inconclusive"}
    assert verdict.sessions == pytest.approx(luck, rel=0.01)


def test_nothing_is_decided_between_the_looks() -> None:
    four = pairs(5.0, blocks=32, noise=0.001, sessions=4)
    assert judge([item for item in four if item.session < 2], max_ratio=1.05, ended=False).outcome == "inconclusive"
    assert judge([item for item in four if item.session < 3], max_ratio=1.05, ended=False).outcome == "regression"
    wide = pairs(1.0, blocks=32, noise=0.2, sessions=4)
    seen = judge(wide, max_ratio=1.05, ended=False).ratios["tpot_s"]
    assert seen == judge([item for item in wide if item.session < 3], max_ratio=1.05, ended=False).ratios["tpot_s"]
    assert seen != judge(wide, max_ratio=1.05, ended=True).ratios["tpot_s"]


def test_an_open_verdict_says_how_much_more_time_it_needs() -> None:
    open_verdict = judge(timed(pairs(1.0, blocks=32, noise=0.1)), max_ratio=1.05)
    assert open_verdict.outcome == "inconclusive"
    assert open_verdict.settling_budget_s is not None
    assert open_verdict.settling_budget_s > open_verdict.measured_s
    with pytest.raises(CheckFailed) as caught:
        require_pass(open_verdict)
    assert f"--budget {open_verdict.settling_budget_s:g}" in str(caught.value.remedy)
    hopeless = judge(timed(pairs(1.05, blocks=400, noise=0.06)), max_ratio=1.05)
    assert hopeless.settling_budget_s is None
    assert "no reasonable time" in how_to_settle(hopeless)
    assert judge(timed(pairs(1.0, blocks=20, noise=0.001)), max_ratio=1.05).settling_budget_s is None


def test_what_was_left_out_and_what_was_counted_is_said() -> None:
    samples = [
        sample.model_copy(
            update={"stolen_s": 0.5 if sample.block == 3 else 0.0, "instructions": 100 + 10 * sample.subject}
        )
        for sample in pairs(1.0, blocks=32, noise=0.001)
    ]
    verdict = judge(samples, max_ratio=1.05)
    assert (verdict.set_aside, verdict.instructions) == (1, pytest.approx(1.1))
    told = "\n".join(tell_measuring(verdict))
    assert "1 of 32 pairs of samples were left out" in told
    assert "instructions: 1.100 of the reference's" in told


def test_a_counter_that_is_absent_is_said() -> None:
    verdict = judge(pairs(1.0, blocks=32, noise=0.001), max_ratio=1.05)
    assert verdict.instructions is None
    assert any("instructions: not compared" in line for line in tell_measuring(verdict))
    # Nothing of a history could be compared with it.
    assert not any("instructions" in line for line in tell_measuring(verdict.model_copy(update={"past": 1})))


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"reference": 1.0, "candidate": 0.4}, "granted in part (reference 100%, candidate 40%)"),
        ({"reference": 0.4, "candidate": 0.4}, "granted in part"),
        ({"reference": 0.0, "candidate": 0.0}, "gives no huge pages"),
        ({"reference": 0.97, "candidate": 1.0}, None),
        ({}, None),
    ],
)
def test_huge_pages_that_were_not_granted_are_said(shares: dict[str, float], words: str | None) -> None:
    verdict = judge(pairs(1.0, blocks=32, noise=0.001), max_ratio=1.05).model_copy(update={"huge_shares": shares})
    told = "\n".join(tell_measuring(verdict))
    assert ("uge pages" in told) == (words is not None)
    assert words is None or words in told
    # `check` has none of the options of `bench`.
    assert "--sessions" not in told


def timed(samples: list[Sample]) -> list[Sample]:
    """One second for each sample."""
    return [sample.model_copy(update={"started_s": float(place)}) for place, sample in enumerate(samples)]


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


def test_a_budget_is_divided_among_pairs_of_processes() -> None:
    now_s = 0.0
    budget = TimeBudget(30.0, clock=lambda: now_s)

    def over(size: int, counting: int, session: int) -> bool:
        return budget.session_is_over(size, counting, session=session, wanted=3)

    budget.begin_session()
    now_s += 6
    budget.end_setup()
    assert budget.setup_blocks() == 0
    for _ in range(2):
        now_s += 1
        budget.count_block()
    assert budget.setup_blocks() == 6
    assert not over(3, 2, session=0)
    assert over(2, 2, session=0)
    # Disturbed blocks are made up for, up to twice the size.
    assert not over(2, 1, session=0)
    assert over(1, 0, session=0)
    # A third of the time is over: the first of three pairs ends, the second one does not.
    now_s += 2
    assert over(20, 2, session=0)
    assert not over(20, 2, session=1)
    assert budget.affords_session()
    now_s += 12.5
    assert not budget.affords_session()
    assert not budget.spent()
