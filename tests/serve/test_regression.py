"""The verdict on invented samples: what passes, what fails, what stays open."""

from __future__ import annotations

import numpy as np
import pytest

from serve.measurement import Sample
from serve.regression import MINIMUM_BLOCKS, judge, require_pass
from shearling.errors import CheckFailed


def pairs(slowdown: float, *, blocks: int, noise: float) -> list[Sample]:
    """Reference and candidate under common drift of 2x and own lognormal noise."""
    generator = np.random.default_rng(11)
    samples = []
    for block in range(blocks):
        drift = 1 + generator.random()
        for subject, factor in enumerate((1.0, slowdown)):
            time_s = drift * factor * float(generator.lognormal(sigma=noise))
            samples.append(
                Sample(subject=subject, session=0, block=block, position=subject, started_s=0.0, ttft_s=time_s, gaps_s=(time_s,), total_s=2 * time_s)
            )
    return samples


def test_equal_speed_passes_in_spite_of_drift() -> None:
    verdict = judge(pairs(1.0, blocks=20, noise=0.01), max_ratio=1.05)
    assert verdict.outcome == "pass"
    require_pass(verdict)


def test_ten_percent_is_a_regression() -> None:
    verdict = judge(pairs(1.1, blocks=20, noise=0.01), max_ratio=1.05)
    assert verdict.outcome == "regression"
    with pytest.raises(CheckFailed, match=r"regression against 1\.05 after 20 pairs"):
        require_pass(verdict)


def test_noise_wider_than_the_threshold_is_never_a_pass() -> None:
    verdict = judge(pairs(1.0, blocks=10, noise=0.5), max_ratio=1.05)
    assert verdict.outcome == "inconclusive"
    with pytest.raises(CheckFailed, match="inconclusive"):
        require_pass(verdict)


def test_too_few_pairs_decide_nothing() -> None:
    assert judge(pairs(5.0, blocks=MINIMUM_BLOCKS - 1, noise=0.0), max_ratio=1.05).outcome == "inconclusive"
    assert judge(pairs(5.0, blocks=MINIMUM_BLOCKS, noise=0.0), max_ratio=1.05).outcome == "regression"
