"""What came out: the rows of the closing table, read from what the commands wrote, and what may be said about them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pydantic

from shearling.artefact import open_artefact
from shearling.demo.layout import DemoLayout
from shearling.demo.plan import compared_exports, compared_models
from shearling.errors import ArtefactMismatch
from shearling.evaluation.scoreboard import Score, Scoreboard
from shearling.strict_json import Document, read_json, validate_document

LABELS = {
    "dense": "dense, as it came",
    "lora": "dense + LoRA",
    "sparse": "pruned only",
    "pruned_after": "LoRA, then pruned",
    "ours": "pruned + sub-adapter",
    "packed": "same, sparse kernel",
}
"""Role -> the name in tables; the last two are what Shearling makes."""

TRAINING_LOG = "training_log.jsonl"
JOURNAL = "journal.jsonl"
BENCHMARK = "benchmark.json"
Z_95 = 1.959963984540054


class Spread(Document):
    """A median and its 95 % interval."""

    median: float
    low: float
    high: float


class Speed(Document):
    """What the benchmark measured; see its definitions.

    Attributes:
        weight_bytes: the OpenVINO graph and weights.
        decode_ratio: time per token over that of the dense model, in pairs; None for that one.
    """

    weight_bytes: int
    ttft_s: Spread
    tpot_s: Spread
    tokens_per_s: Spread
    decode_ratio: Spread | None


class Row(Document):
    """One model of the comparison; see `Score` for the measures.

    Attributes:
        speed: None where the model was not exported.
    """

    role: str
    label: str
    accuracy: float
    interval: tuple[float, float]
    bits_per_byte: float | None
    sparsity: float
    speed: Speed | None


class Candidate(Document):
    """One evaluation of the search."""

    id: str
    adapter_params: int
    accuracy: float
    pareto: bool
    best: bool


class Outcome(Document):
    """Everything that the screen and the page show.

    Attributes:
        rows: in the order of `LABELS`.
        n: test rows, the same for all.
        losses: name -> [(step, loss)] of each training.
        seconds: step -> what it took; all sittings together.
        findings: in plain words, each only where the numbers carry it.
    """

    schema_: Literal["shearling.demo/1"] = pydantic.Field("shearling.demo/1", alias="schema")
    scale: str
    model_id: str
    task: str
    n: int
    precision: str
    rows: tuple[Row, ...]
    candidates: tuple[Candidate, ...]
    losses: dict[str, tuple[tuple[int, float], ...]]
    seconds: dict[str, float]
    machine: str
    workload: str
    findings: tuple[str, ...]

    def row(self, role: str) -> Row:
        """The row of one model."""
        return next(row for row in self.rows if row.role == role)


def read_outcome(layout: DemoLayout, *, scale: str, seconds: dict[str, float]) -> Outcome:
    """Gather the results of a finished demo.

    Raises:
        ArtefactError: something is missing, or was measured on other models.
    """
    answer = read_json(layout.evaluation)
    answer.pop("status", None)
    board = validate_document(answer, Scoreboard, where=layout.evaluation)
    open_artefact(layout.benchmark, kind="benchmark")
    benchmark = read_json(layout.benchmark / BENCHMARK)
    rows = _rows(layout, board, benchmark)
    work, environment = benchmark["workload"], benchmark["environment"]
    return Outcome(
        scale=scale,
        model_id=str(open_artefact(layout.run.base, kind="base", only=()).manifest.details["model_id"]),
        task=board.task,
        n=board.scores[0].n,
        precision=board.precision,
        rows=rows,
        candidates=read_candidates(layout.run.search),
        losses={
            "under the mask (pruned)": _losses(layout.run.super_adapter / TRAINING_LOG),
            "plain LoRA (dense)": _losses(layout.lora.super_adapter / TRAINING_LOG),
        },
        seconds=seconds,
        machine=f"{environment['cpu']}, {environment['usable_cpus']} CPUs",
        workload=f"{work['prompt_tokens']} prompt and {work['new_tokens']} new tokens, batch 1, OpenVINO GenAI on CPU",
        findings=tuple(describe(rows, board.scores[0].n)),
    )


def _rows(layout: DemoLayout, board: Scoreboard, benchmark: dict[str, Any]) -> tuple[Row, ...]:
    scores = {score.directory: score for score in board.scores}
    subjects = {subject["deployment"]["label"]: subject for subject in benchmark["subjects"]}
    exports = compared_exports(layout)
    rows = []
    for role, model in compared_models(layout).items():
        deployed = str(exports[role]) if role in exports else None
        score = scores.get(str(model))
        if score is None or score.sparsity is None or (deployed is not None and deployed not in subjects):
            raise ArtefactMismatch(
                f"the results do not cover '{role}'", where=layout.path, remedy="Run the demo again with --force"
            )
        rows.append(_row(role, score, score.sparsity, subjects[deployed] if deployed is not None else None))
    return tuple(rows)


def _row(role: str, score: Score, sparsity: float, subject: dict[str, Any] | None) -> Row:
    return Row(
        role=role,
        label=LABELS[role],
        accuracy=score.accuracy,
        interval=score.interval,
        bits_per_byte=score.bits_per_byte,
        sparsity=sparsity,
        speed=None if subject is None else _speed(subject),
    )


def _speed(subject: dict[str, Any]) -> Speed:
    metrics, ratios = subject["metrics"], subject["ratios"]
    return Speed(
        weight_bytes=subject["deployment"]["weights_bytes"],
        ttft_s=_spread(metrics["ttft_s"]),
        tpot_s=_spread(metrics["tpot_s"]),
        tokens_per_s=_spread(metrics["tokens_per_s"]),
        decode_ratio=_spread(ratios["tpot_s"]) if ratios else None,
    )


def read_candidates(search: Path) -> tuple[Candidate, ...]:
    """The evaluations of a search, each choice once, with the Pareto front: more accuracy, fewer adapter parameters."""
    best = read_json(search / "best.json")["id"]
    found: dict[str, dict[str, Any]] = {}
    for line in _lines(search / JOURNAL):
        if line.get("accuracy") is not None:
            found.setdefault(json.dumps(line["choice_idx"]), line)
    points = list(found.values())
    return tuple(
        Candidate(
            id=str(point["id"]),
            adapter_params=int(point["adapter_params"]),
            accuracy=float(point["accuracy"]),
            pareto=not any(_dominates(other, point) for other in points),
            best=point["id"] == best,
        )
        for point in points
    )


def describe(rows: Iterable[Row], n: int) -> list[str]:
    """What the numbers allow to be said."""
    row = {item.role: item for item in rows}
    ours, lora, after, sparse, dense = row["ours"], row["lora"], row["pruned_after"], row["sparse"], row["dense"]
    said = []
    if dense.bits_per_byte is not None and sparse.bits_per_byte is not None:
        said.append(
            f"Pruning {sparse.sparsity:.0%} of the weights costs language: {dense.bits_per_byte:.2f} "
            f"to {sparse.bits_per_byte:.2f} bits per byte."
        )
    said.append(f"Fine-tuned, then pruned: {lora.accuracy:.1%} becomes {after.accuracy:.1%}{_verdict(after, lora, n)}.")
    said.append(
        f"Pruned first, then trained under the mask: {ours.accuracy:.1%}, {_against(ours, after, n)} pruning last,"
        f" {_against(ours, lora, n)} dense + LoRA; {ours.sparsity:.1%} of the weights are exactly zero."
    )
    said += [
        *_speed_of(ours, dense, "Stock OpenVINO has no use for unstructured zeros"),
        *_speed_of(row["packed"], dense, "Packed, int8"),
    ]
    return said


def _speed_of(row: Row, dense: Row, what: str) -> Iterable[str]:
    if row.speed is None or dense.speed is None or row.speed.decode_ratio is None:
        return
    ratio, size = row.speed.decode_ratio, row.speed.weight_bytes / dense.speed.weight_bytes
    change = (
        "no difference in speed can be seen"
        if ratio.low <= 1 <= ratio.high
        else f"a token takes {ratio.median:.2f} times as long"
    )
    yield f"{what}: against dense {change} ({ratio.low:.2f} to {ratio.high:.2f}), at {size:.2f} times its size."


def difference_is_clear(first: float, second: float, n: int) -> bool:
    """Whether two accuracies over n rows each differ beyond their 95 % interval.

    The rows are the same, so this errs on the careful side: a paired comparison would see smaller differences.
    """
    error = math.sqrt((first * (1 - first) + second * (1 - second)) / n)
    return abs(first - second) > Z_95 * error


def _verdict(after: Row, before: Row, n: int) -> str:
    return (
        ""
        if difference_is_clear(after.accuracy, before.accuracy, n)
        else ", a difference that these rows cannot tell from chance"
    )


def _against(ours: Row, other: Row, n: int) -> str:
    points = 100 * (ours.accuracy - other.accuracy)
    if not difference_is_clear(ours.accuracy, other.accuracy, n):
        return f"not distinguishable ({points:+.1f} points) from"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def _dominates(first: dict[str, Any], second: dict[str, Any]) -> bool:
    no_worse = first["accuracy"] >= second["accuracy"] and first["adapter_params"] <= second["adapter_params"]
    return no_worse and (first["accuracy"] > second["accuracy"] or first["adapter_params"] < second["adapter_params"])


def _losses(path: Path) -> tuple[tuple[int, float], ...]:
    return tuple((int(line["step"]), float(line["loss"])) for line in _lines(path) if "loss" in line)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _spread(estimate: dict[str, Any]) -> Spread:
    return Spread(median=estimate["median"], low=estimate["low"], high=estimate["high"])
