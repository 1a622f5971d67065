"""The time now over the times of a history, and how long a measurement would probably settle an open answer.

Nothing ran side by side: each resample of the interval draws one of the recorded measurements, and then blocks from it
(Davison and Hinkley, Bootstrap Methods, 3.8), so a history of several days knows how far days differ. That part of the
interval no longer measurement narrows.

What a process owes to luck for its whole life (`serve.guard.process_pairs`) is in every measurement, and no bootstrap
of its blocks shows it. With l² its variance in the log of one process, a median over p of them has l² / p, so the ratio
of a measurement of p to the mean of n of q has l² / p + l² / (n q), and the scatter of those n shows (1 - 1/n) l² / q
on average; the rest, l² (1/p - 1/q + 2 / (n q)), is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve.bench.statistics import CONFIDENCE, RESAMPLES, Estimate
from serve.guard.forecast import DRAWS, LIKELY
from serve.guard.process_pairs import GROWTH, USUAL_LUCK

LOOKS = 2
"""After a first number of blocks, and when the time is over; each has its part of the error (Bonferroni)."""
LOOK_CONFIDENCE = 1 - (1 - CONFIDENCE) / LOOKS


@dataclass(frozen=True)
class Times:
    """One measurement.

    Attributes:
        values: one for each block.
        processes: that they are of.
    """

    values: tuple[float, ...]
    processes: int


def of_the_same_prompts(measurements: Sequence[Sequence[float]], *, prompts: int, blocks_each: int) -> list[Times]:
    """Of each measurement the blocks of those prompts that all of them have reached, each equally often.

    Args:
        measurements: one value for each block, which take the prompts in turn.
        prompts: of a trace; 1 where all are of one kind.
        blocks_each: of one process.
    """
    reached = min(prompts, *map(len, measurements))
    found = []
    for values in measurements:
        rounds, rest = divmod(len(values), prompts)
        whole = (rounds + (rest >= reached)) * prompts
        kept = tuple(value for block, value in enumerate(values) if block < whole and block % prompts < reached)
        found.append(Times(kept, processes=-(-len(values) // blocks_each)))
    return found


def history_ratio(now: Times, then: Sequence[Times]) -> Estimate:
    """Median now over median then, with the interval of one look.

    Args:
        now: of this measurement.
        then: of each recorded one.
    """
    generator = np.random.default_rng(0)
    own, past = _medians(now, generator), _drawn_medians(then, generator)
    past *= np.exp(_unseen_luck(now, then) * generator.standard_normal(past.size))
    tail = (1 - LOOK_CONFIDENCE) / 2
    low, high = np.quantile(own / past, [tail, 1 - tail])
    median = float(np.median(now.values) / np.median([np.median(day.values) for day in then]))
    return Estimate(median=median, low=min(float(low), median), high=max(float(high), median), samples=len(now.values))


def blocks_to_settle(now: Times, then: Sequence[Times], *, max_ratio: float, most: int) -> int | None:
    """Blocks of a new measurement that would probably be clear; None where no number would.

    The true time is drawn as this measurement leaves it open, and a new one from that; what scatters in a median is
    taken as normal, and as 1 / sqrt(blocks).

    Args:
        now: of this measurement, which is not.
        then: of the history.
        max_ratio: largest acceptable ratio.
        most: blocks that a measurement can have.
    """
    generator = np.random.default_rng(0)
    spread = float(np.log(_medians(now, generator)).std())
    past = np.log(_drawn_medians(then, generator))
    past += _unseen_luck(now, then) * generator.standard_normal(past.size)
    true = math.log(float(np.median(now.values))) + spread * generator.standard_normal(DRAWS)
    tail, limit = (1 - LOOK_CONFIDENCE) / 2, math.log(max_ratio)
    count = len(now.values)
    while count < most:
        count = min(most, math.ceil(GROWTH * count))
        own = spread * math.sqrt(len(now.values) / count)
        found = true + own * generator.standard_normal(DRAWS)
        low, high = np.quantile(own * generator.standard_normal(past.size) - past, [tail, 1 - tail])
        if np.mean((found + high <= limit) | (found + low > limit)) >= LIKELY:
            return count
    return None


def _unseen_luck(now: Times, then: Sequence[Times]) -> float:
    """Standard deviation in the log of a ratio; `USUAL_LUCK` is that of two processes together."""
    of_past = sum(1 / day.processes for day in then) / len(then)
    return USUAL_LUCK * math.sqrt(max(0.0, (1 / now.processes - of_past) / 2 + of_past / len(then)))


def _medians(times: Times, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    data = np.asarray(times.values)
    return np.median(data[generator.integers(0, data.size, size=(RESAMPLES, data.size))], axis=1)


def _drawn_medians(days: Sequence[Times], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Of so many resamples, each of one of the days."""
    medians = np.stack([_medians(day, generator) for day in days])
    return medians[generator.integers(0, len(days), size=RESAMPLES), np.arange(RESAMPLES)]
