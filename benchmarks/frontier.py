"""Task accuracy against decoding speed, ours and the peers': the chart that every change is judged by.

    shearling evaluate MODEL ... --tasks RUN/task --json > accuracy.json
    python -m serve bench MODEL ... --output speed
    python -m benchmarks.frontier --accuracy accuracy.json --speed speed --ours packed,sparse --output frontier.svg

Both commands are given the same models, so that accuracy and speed belong to the same files; what differs in a property
of the runtime alone, such as `DIR@NAME=VALUE`, shares the accuracy of `DIR` where it has none of its own. Models whose
name begins with one of --ours are ours. The table goes to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import command
from serve.bench.benchmark import BenchmarkSubject
from serve.bench.benchmark_artefact import read_benchmark
from shearling.chart import Point, as_file, scatter
from shearling.errors import ArtefactMismatch
from shearling.evaluation.scoreboard import Score, Scoreboard, read_scoreboard
from shearling.registry.runtimes import RUNTIMES
from shearling.strict_json import write_text


@dataclass(frozen=True)
class Place:
    """Where a model stands.

    Attributes:
        name: the last part of its path, and its properties.
        runtime: as people call it.
        tokens_per_s: median, in decoding.
    """

    name: str
    runtime: str
    mib: float
    score: Score
    tokens_per_s: float
    first_token_ms: float

    def is_passed_by(self, other: Place) -> bool:
        """Whether another is at least as accurate and as fast, and better in one of the two."""
        ours, theirs = (self.score.accuracy, self.tokens_per_s), (other.score.accuracy, other.tokens_per_s)
        return theirs != ours and theirs[0] >= ours[0] and theirs[1] >= ours[1]


def place_models(board: Scoreboard, subjects: Sequence[BenchmarkSubject]) -> list[Place]:
    """Accuracy and speed of every model that was timed, the fastest first.

    Raises:
        ArtefactMismatch: the accuracies are of several tasks, or a model that was timed has none, or one of another
            format.
    """
    if len(board.tasks) != 1:
        raise ArtefactMismatch(f"one task is needed, these are {', '.join(board.tasks)}", where="--accuracy")
    scores = {score.directory: score for score in board.scores}
    return sorted((_place(subject, scores) for subject in subjects), key=lambda place: -place.tokens_per_s)


def _place(subject: BenchmarkSubject, scores: dict[str, Score]) -> Place:
    deployment = subject.deployment
    own = ",".join(f"{name}={value}" for name, value in deployment.properties.items())
    path, _, settings = deployment.label.rpartition("@") if own else (deployment.label, "", "")
    # What stays, such as an environment, may be a part of the name under which the same file was evaluated.
    left = ",".join(part for part in settings.split(",") if part.partition("=")[0] not in deployment.properties)
    names = (deployment.label, f"{path}@{left}", path)
    score = next((scores[name] for name in names if name in scores), None)
    if score is None:
        raise ArtefactMismatch("was timed, and its accuracy is not there", where=deployment.label)
    if score.model_format not in (None, deployment.format):
        raise ArtefactMismatch(
            f"its accuracy is that of {score.model_format}, its speed that of {deployment.format}",
            where=deployment.label,
            remedy="Name the format in both commands, such as DIR@format=openvino",
        )
    name = Path(deployment.file or path).name.removesuffix(".gguf")
    return Place(
        name=f"{name}, {own}" if own else name,
        runtime=RUNTIMES.get(deployment.format).title,
        mib=deployment.weights_bytes / 2**20,
        score=score,
        tokens_per_s=subject.metrics["tokens_per_s"].median,
        first_token_ms=1e3 * subject.metrics["ttft_s"].median,
    )


def table(places: Sequence[Place]) -> str:
    """The places as Markdown; bold is what no other model passes."""
    lines = [
        "| model | runtime | MiB | accuracy, % (95 %) | bits per byte | tokens/s | first token, ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for place in places:
        low, high = place.score.interval
        mark = "" if _passed(place, places) else "**"
        bits = place.score.bits_per_byte
        cells = (
            f"{mark}{place.name}{mark}",
            place.runtime,
            f"{place.mib:.0f}",
            f"{100 * place.score.accuracy:.1f} ({100 * low:.0f}-{100 * high:.0f})",
            "" if bits is None else f"{bits:.2f}",
            f"{place.tokens_per_s:.0f}",
            f"{place.first_token_ms:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def chart(places: Sequence[Place], *, ours: tuple[str, ...]) -> str:
    """The places as SVG; the line joins what no other model passes.

    Args:
        places: of all models.
        ours: how the names of our models begin.
    """
    points = [
        Point(
            x=place.tokens_per_s,
            y=100 * place.score.accuracy,
            low=100 * place.score.interval[0],
            high=100 * place.score.interval[1],
            # What differs in a property of the runtime alone stands beside its own kind.
            label="" if "," in place.name else place.name,
            note=f"{place.name}, {place.runtime}: {place.score.accuracy:.1%}, {place.tokens_per_s:.0f} tokens/s",
            mark="ours" if place.name.startswith(ours) else "plain",
        )
        for place in places
    ]
    front = [(place.tokens_per_s, 100 * place.score.accuracy) for place in places if not _passed(place, places)]
    return as_file(
        scatter(
            points,
            title="Accuracy and speed",
            x_label="tokens/s, more is better",
            y_label="accuracy, %",
            line=sorted(front),
        )
    )


def _passed(place: Place, places: Sequence[Place]) -> bool:
    return any(place.is_passed_by(other) for other in places)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the chart, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--accuracy", type=Path, required=True, help="what `shearling evaluate --json` printed")
    add("--speed", type=Path, required=True, help="what `python -m serve bench --output` wrote")
    add("--ours", required=True, help="how the names of our models begin, with commas between them")
    add("--output", type=Path, required=True, help="the chart, an SVG file")
    options = parser.parse_args(arguments)
    board = read_scoreboard(options.accuracy)
    places = place_models(board, read_benchmark(options.speed).subjects)
    write_text(options.output, chart(places, ours=tuple(options.ours.split(","))))
    sys.stdout.write(table(places))
    return 0


if __name__ == "__main__":
    sys.exit(main())
