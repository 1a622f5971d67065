"""Task accuracy against decoding speed, ours and the peers': the chart that every change is judged by.

    shearling evaluate MODEL ... --tasks RUN/task --json > accuracy.json
    python -m serve bench MODEL ... --output speed
    python -m benchmarks.frontier --accuracy accuracy.json --speed speed --ours packed,sparse --output frontier.svg
    python -m benchmarks.frontier --cells docs/quality --ratio 0.5 --file sparse-int8=packed --file lora=openvino-int8 \
        --speed speed --ours sparse --output frontier.svg

Both commands are given the same models, so that accuracy and speed belong to the same files; what differs in a property
of the runtime alone, such as `DIR@NAME=VALUE`, shares the accuracy of `DIR` where it has none of its own. Models whose
name begins with one of --ours are ours. The table goes to stdout as Markdown.

The second form takes accuracies of several tasks and seeds, of the cells of `benchmarks.quality`, as points above the
dense LoRA of the same task and seed. Speed knows neither task nor seed, so that a timed file of the same format stands
for those of all cells: --file says for which.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.command import command
from benchmarks.quality.arms import BASELINE, PIPELINE
from benchmarks.quality.cell import ServedName, read_cells
from benchmarks.quality.summary import Row, summarise
from serve.bench.benchmark import BenchmarkSubject
from serve.bench.benchmark_artefact import read_benchmark
from shearling.chart import Point, as_file, scatter
from shearling.errors import ArtefactMismatch, ArtefactMissing
from shearling.evaluation.scoreboard import Score, Scoreboard, read_scoreboard
from shearling.registry.runtimes import RUNTIMES
from shearling.strict_json import write_text


@dataclass(frozen=True)
class Accuracy:
    """How accurate a model is.

    Attributes:
        value: in % of the rows, or in points above dense LoRA.
        interval: of it: 95 % of the rows, or one standard error over seeds to either side.
        told: both, as in the table.
        bits_per_byte: of the task's text, or of a general one; None where it was not measured.
    """

    value: float
    interval: tuple[float, float]
    told: str
    bits_per_byte: float | None


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
    accuracy: Accuracy
    tokens_per_s: float
    first_token_ms: float

    def is_passed_by(self, other: Place) -> bool:
        """Whether another is at least as accurate and as fast, and better in one of the two."""
        ours, theirs = (self.accuracy.value, self.tokens_per_s), (other.accuracy.value, other.tokens_per_s)
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
    return _placed(subjects, lambda subject: _of_rows(subject, scores))


def place_files(rows: Sequence[Row], subjects: Sequence[BenchmarkSubject], files: Mapping[str, str]) -> list[Place]:
    """Points above dense LoRA, and speed of every model that was timed, the fastest first.

    Args:
        rows: of the baseline's files and of ours, of one ratio.
        subjects: what was timed.
        files: for which file of the cells a timed model stands, by its name; one that is not named is called as in the
            cells.

    Raises:
        ArtefactMissing: the cells have no such file, or no baseline for it.
        ArtefactMismatch: rows are of different cells, and cannot be compared.
    """
    served = [row for row in rows if row.key.subnet in get_args(ServedName)]
    if len({row.paired for row in served}) > 1:
        counts = ", ".join(f"{row.key.subnet} {len(row.paired)}" for row in served)
        every = frozenset.union(*(row.paired for row in served))
        lacking = [(row, sorted(every - row.paired)) for row in served if every - row.paired]
        row, (first, *_) = lacking[0]
        raise ArtefactMismatch(
            f"these are means of different cells: {counts}",
            where="--cells",
            remedy=f"Carry out what {row.key.subnet} lacks: {first[0]} with seed {first[1]}, and the others",
        )
    named = {str(row.key.subnet): row for row in served}
    return _placed(subjects, lambda subject: _of_cells(subject, named, files))


def _placed(subjects: Sequence[BenchmarkSubject], accuracy: Callable[[BenchmarkSubject], Accuracy]) -> list[Place]:
    places = [
        Place(
            name=_name(subject),
            runtime=RUNTIMES.get(subject.deployment.format).title,
            mib=subject.deployment.weights_bytes / 2**20,
            accuracy=accuracy(subject),
            tokens_per_s=subject.metrics["tokens_per_s"].median,
            first_token_ms=1e3 * subject.metrics["ttft_s"].median,
        )
        for subject in subjects
    ]
    return sorted(places, key=lambda place: -place.tokens_per_s)


def _name(subject: BenchmarkSubject) -> str:
    path, own, _ = _parts(subject)
    name = Path(subject.deployment.file or path).name.removesuffix(".gguf")
    return f"{name}, {own}" if own else name


def _parts(subject: BenchmarkSubject) -> tuple[str, str, str]:
    """The path of what was timed, its properties, and the other settings."""
    deployment = subject.deployment
    own = ",".join(f"{name}={value}" for name, value in deployment.properties.items())
    path, _, settings = deployment.label.rpartition("@") if own else (deployment.label, "", "")
    # What stays, such as an environment, may be a part of the name under which the same file was evaluated.
    left = ",".join(part for part in settings.split(",") if part.partition("=")[0] not in deployment.properties)
    return path, own, left


def _of_rows(subject: BenchmarkSubject, scores: Mapping[str, Score]) -> Accuracy:
    deployment, (path, _, left) = subject.deployment, _parts(subject)
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
    low, high = (100 * bound for bound in score.interval)
    value = 100 * score.accuracy
    return Accuracy(value, (low, high), f"{value:.1f} ({low:.0f}-{high:.0f})", score.bits_per_byte)


def _of_cells(subject: BenchmarkSubject, rows: Mapping[str, Row], files: Mapping[str, str]) -> Accuracy:
    name = _name(subject)
    alone = name.partition(", ")[0]
    file = files.get(name, files.get(alone, alone))
    row = rows.get(file)
    if row is None or row.difference is None:
        raise ArtefactMissing(
            f"the cells have no file {file} with a baseline",
            where=subject.deployment.label,
            remedy=f"Name one of {', '.join(sorted(rows))} for it, as --file {alone}=FILE",
        )
    # Without the sign of a zero that was rounded to.
    value, error = (round(100 * part, 1) + 0.0 for part in (row.difference.mean, row.difference.stderr or 0.0))
    told = f"{value:+.1f}" if row.difference.stderr is None else f"{value:+.1f} ± {error:.1f}"
    return Accuracy(value, (value - error, value + error), told, row.after)


def table(places: Sequence[Place], *, measure: str) -> str:
    """The places as Markdown; bold is what no other model passes.

    Args:
        places: of all models.
        measure: what accuracy is told in.
    """
    lines = [
        f"| model | runtime | MiB | {measure} | bits per byte | tokens/s | first token, ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for place in places:
        mark = "" if _passed(place, places) else "**"
        bits = place.accuracy.bits_per_byte
        cells = (
            f"{mark}{place.name}{mark}",
            place.runtime,
            f"{place.mib:.0f}",
            place.accuracy.told,
            "" if bits is None else f"{bits:.2f}",
            f"{place.tokens_per_s:.0f}",
            f"{place.first_token_ms:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def chart(places: Sequence[Place], *, ours: tuple[str, ...], measure: str) -> str:
    """The places as SVG; the line joins what no other model passes.

    Args:
        places: of all models.
        ours: how the names of our models begin.
        measure: what accuracy is told in.
    """
    points = [
        Point(
            x=place.tokens_per_s,
            y=place.accuracy.value,
            low=place.accuracy.interval[0],
            high=place.accuracy.interval[1],
            # What differs in a property of the runtime alone stands beside its own kind.
            label="" if "," in place.name else place.name,
            note=f"{place.name}, {place.runtime}: {place.accuracy.told}, {place.tokens_per_s:.0f} tokens/s",
            mark="ours" if place.name.startswith(ours) else "plain",
        )
        for place in places
    ]
    front = [(place.tokens_per_s, place.accuracy.value) for place in places if not _passed(place, places)]
    return as_file(
        scatter(
            points,
            title="Accuracy and speed",
            x_label="tokens/s, more is better",
            y_label=measure,
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
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--accuracy", type=Path, help="what `shearling evaluate --json` printed")
    source.add_argument("--cells", type=Path, help="a directory of `python -m benchmarks.quality`")
    add("--ratio", default="0.5", help="of the cells of ours, such as 0.5 or 2:4")
    add("--file", type=_standing_for, action="append", default=[], help="NAME=FILE: what a timed model stands for")
    add("--speed", type=Path, required=True, help="what `python -m serve bench --output` wrote")
    add("--ours", required=True, help="how the names of our models begin, with commas between them")
    add("--output", type=Path, required=True, help="the chart, an SVG file")
    options = parser.parse_args(arguments)
    if options.cells is None:
        measure = "accuracy, % (95 %)"
        board = read_scoreboard(options.accuracy)
        places = place_models(board, read_benchmark(options.speed).subjects)
    else:
        measure = "points above dense LoRA"
        arms = ((BASELINE, ""), (PIPELINE, options.ratio))
        rows = [row for row in summarise(read_cells(options.cells)) if (row.key.arm, row.key.ratio) in arms]
        places = place_files(rows, read_benchmark(options.speed).subjects, dict(options.file))
    write_text(options.output, chart(places, ours=tuple(options.ours.split(",")), measure=measure))
    sys.stdout.write(table(places, measure=measure))
    return 0


def _standing_for(text: str) -> tuple[str, str]:
    name, equals, file = text.rpartition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=FILE")
    return name, file


if __name__ == "__main__":
    sys.exit(main())
