"""Which blocks count: decided by what was counted beside them, alike for both sides, and never by their times."""

from __future__ import annotations

import pytest

from serve.bench.measurement import Sample
from serve.guard.disturbance import undisturbed
from serve.guard.judging import counting_blocks, paired_blocks


def block(number: int, *, stolen_s: float = 0.0, preemptions: int | None = 4, side: int = 0) -> list[Sample]:
    return [
        Sample(
            subject=subject,
            session=0,
            block=number,
            position=subject,
            started_s=0.0,
            prompt_tokens=4,
            batch=1,
            ttft_s=0.02 * (1 + 0.1 * number * subject),
            gaps_s=(0.01, 0.01),
            total_s=0.04,
            waited_s=None,
            lost_first_s=0.0,
            lost_decode_s=0.0,
            stolen_s=stolen_s if subject == side else 0.0,
            preemptions=preemptions if subject == side or preemptions is None else 4,
        )
        for subject in (0, 1)
    ]


@pytest.mark.parametrize("side", [0, 1])
def test_a_block_is_left_out_for_either_side(side: int) -> None:
    quiet = [block(number) for number in range(5)]
    stolen, put_off = block(5, stolen_s=0.01, side=side), block(6, preemptions=40, side=side)
    assert undisturbed([*quiet, stolen, put_off]) == quiet
    samples = [sample for pair in (*quiet, stolen, put_off) for sample in pair]
    assert counting_blocks(samples) == 5
    found = paired_blocks(samples)
    assert (len(found.logs["ttft_s"][0]), found.set_aside) == (5, 2)


def test_what_is_usual_is_no_disturbance() -> None:
    busy = [block(number, preemptions=30 + number) for number in range(6)]
    assert undisturbed(busy) == busy
    stolen = [block(number, stolen_s=0.02) for number in range(6)]
    assert undisturbed([*stolen, block(6)]) == [*stolen, block(6)]
    assert undisturbed([*stolen, block(6), block(7)]) == [block(6), block(7)]


def test_where_nobody_counts_everything_counts() -> None:
    blocks = [
        [sample.model_copy(update={"stolen_s": None}) for sample in block(number, preemptions=None)]
        for number in range(4)
    ]
    assert undisturbed(blocks) == blocks
    assert undisturbed([]) == []


def test_times_decide_nothing() -> None:
    slow = [[sample.model_copy(update={"ttft_s": 50.0}) for sample in block(0)], *[block(1 + n) for n in range(4)]]
    assert undisturbed(slow) == slow


def test_one_block_makes_no_pair_of_processes() -> None:
    assert paired_blocks(block(0)).logs["tpot_s"] == []
