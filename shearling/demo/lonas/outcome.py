"""What came out of the demo of elastic widths: read from what the commands wrote."""

from __future__ import annotations

from shearling.demo.documents import read_benchmark, read_export, read_forward
from shearling.demo.lonas.layout import LonasLayout, ModelKind
from shearling.evaluation.scoreboard import read_scoreboard
from shearling.strict_json import Document


class LonasRow(Document):
    """One model of the table.

    Attributes:
        interval: of the accuracy on test rows, Wilson, 95 %.
        macs_m: of one forward over 256 tokens, millions, without the products inside attention.
        ms: of a forward of an encoder, of a token of a decoder; OpenVINO on this CPU, batch 1.
        speedup: of that against LoRA at full width, with its interval.
    """

    label: str
    accuracy: float
    interval: tuple[float, float]
    parameters: int
    macs_m: float
    ms: float
    speedup: tuple[float, float, float]


class LonasOutcome(Document):
    """Everything that the screen and the report show.

    Attributes:
        n: unseen rows of the accuracy.
        timed: what `LonasRow.ms` is of, in words.
    """

    kind: ModelKind
    seed: int
    n: int
    timed: str
    models: tuple[LonasRow, ...]
    seconds: dict[str, float]


Timed = tuple[float, tuple[float, float, float]]
"""Milliseconds, and the speed-up over the first model with its interval."""


def read_outcome(layout: LonasLayout, kind: ModelKind, *, seed: int, seconds: dict[str, float]) -> LonasOutcome:
    """Gather the results of a finished demo.

    Raises:
        ArtefactError: something is missing or damaged.
    """
    board = read_scoreboard(layout.evaluation)
    times, timed = _forward_times(layout) if kind == "encoder" else _token_times(layout)
    scores = {score.directory: score for score in board.scores}
    models = []
    for label, export in layout.exports.items():
        score, size, (ms, speedup) = scores[str(export)], read_export(export), times[str(export)]
        models.append(
            LonasRow(
                label=label,
                accuracy=score.accuracy,
                interval=score.interval,
                parameters=size.parameters,
                macs_m=size.macs_m,
                ms=ms,
                speedup=speedup,
            )
        )
    return LonasOutcome(kind=kind, seed=seed, n=board.scores[0].n, timed=timed, models=tuple(models), seconds=seconds)


def _forward_times(layout: LonasLayout) -> tuple[dict[str, Timed], str]:
    forward = read_forward(layout.forward)
    times = {time.directory: (time.ms, (time.speedup, time.low, time.high)) for time in forward.times}
    return times, f"a forward of {forward.tokens} tokens"


def _token_times(layout: LonasLayout) -> tuple[dict[str, Timed], str]:
    benchmark, times = read_benchmark(layout.benchmark), dict[str, Timed]()
    for label, subject in benchmark.by_label.items():
        # A ratio is of times, so its reciprocal is a speed-up, and its ends change places. The first has none to
        # itself.
        ratio = subject.ratios.get("tpot_s")
        speedup = (1.0, 1.0, 1.0) if ratio is None else (1 / ratio.median, 1 / ratio.high, 1 / ratio.low)
        times[label] = (1e3 * subject.metrics["tpot_s"].median, speedup)
    work = benchmark.workload
    return times, f"a token, of {work.new_tokens} after a prompt of {work.prompt_tokens}"
