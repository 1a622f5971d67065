"""What came out of the demo of pruning: read from what the commands wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pydantic

from shearling.artefact import open_artefact
from shearling.demo.documents import (
    BenchmarkView,
    SubjectView,
    read_benchmark,
    read_best,
    read_evaluations,
    read_front,
    read_losses,
)
from shearling.demo.shears.findings import describe
from shearling.demo.shears.layout import ShearsLayout
from shearling.demo.shears.peers import peer_names
from shearling.demo.shears.plan import compared_exports, compared_models
from shearling.demo.shears.rows import PEER, ShearsRow, Speed
from shearling.errors import ArtefactMismatch
from shearling.evaluation.scoreboard import Scoreboard, read_scoreboard
from shearling.kernel.compilation import OPENVINO_LIBRARY
from shearling.strict_json import Document
from shearling.target import Target

EXTENSIONS = "extensions"
"""What a benchmark calls the libraries of operators that a model was loaded with."""
LABELS = {
    "dense": "dense, as it came",
    "lora": "dense + LoRA, int8",
    "sparse": "LoRA, pruned, healed",
    "ours": "that + sub-adapter",
    "packed": "the same, sparse int8",
}
"""Role -> the name in tables; the last two are what Shearling makes."""


class Candidate(Document):
    """One sub-network that the search evaluated."""

    id: str
    adapter_params: int
    accuracy: float
    pareto: bool
    best: bool


class ShearsOutcome(Document):
    """Everything that the screen and the page show.

    Attributes:
        rows: in the order of `LABELS`, and behind them the peers.
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
    rows: tuple[ShearsRow, ...]
    candidates: tuple[Candidate, ...]
    losses: dict[str, tuple[tuple[int, float], ...]]
    seconds: dict[str, float]
    machine: str
    workload: str
    findings: tuple[str, ...]

    def row(self, role: str) -> ShearsRow:
        """The row of one model."""
        return next(row for row in self.rows if row.role == role)

    @property
    def time_in_words(self) -> str:
        """Minutes of all steps. Where there are peers, measuring them is part of it."""
        minutes = f"{sum(self.seconds.values()) / 60:.1f} minutes"
        peers = sum(row.role == PEER for row in self.rows)
        return f"{minutes} with {peers} peer{'s' * (peers > 1)}" if peers else minutes


def read_outcome(
    layout: ShearsLayout, *, scale: str, seconds: dict[str, float], peers: Sequence[Target] = ()
) -> ShearsOutcome:
    """Gather the results of a finished demo.

    Raises:
        ArtefactError: something is missing, or was measured on other models.
    """
    board, benchmark = read_scoreboard(layout.evaluation), read_benchmark(layout.benchmark)
    rows, n = _rows(layout, board, benchmark, peers), board.scores[0].n
    work, environment = benchmark.workload, benchmark.environment
    runtimes = ", ".join(dict.fromkeys(subject.facts.runtime for subject in benchmark.subjects))
    return ShearsOutcome(
        scale=scale,
        model_id=str(open_artefact(layout.run.base, kind="base", only=()).manifest.details["model_id"]),
        task=board.scores[0].task,
        n=n,
        precision=board.precision,
        rows=rows,
        candidates=read_candidates(layout.run.search),
        losses={
            "under the mask (pruned)": read_losses(layout.run.super_adapter),
            "plain LoRA (dense)": read_losses(layout.run.lora),
        },
        seconds=seconds,
        machine=f"{environment.cpu}, {environment.usable_cpus} CPUs",
        workload=f"{work.prompt_tokens} prompt and {work.new_tokens} new tokens, batch 1, {runtimes} on CPU",
        findings=tuple(describe(rows, n)),
    )


def read_candidates(search: Path) -> tuple[Candidate, ...]:
    """The sub-networks that a search evaluated, each once, and which of them it put on its Pareto front."""
    best, front = read_best(search), read_front(search)
    return tuple(
        Candidate(
            id=evaluation.id,
            adapter_params=evaluation.adapter_params,
            accuracy=evaluation.accuracy,
            pareto=evaluation.i in front,
            best=evaluation.id == best,
        )
        for evaluation in read_evaluations(search)
        if evaluation.part == "explored" and not evaluation.cached
    )


def _compared(layout: ShearsLayout, peers: Sequence[Target]) -> Iterator[tuple[str, str, str, bool]]:
    """Role, name in tables, name in the results, and whether it is timed."""
    exports = compared_exports(layout)
    for role, model in compared_models(layout).items():
        yield role, LABELS[role], str(model), role in exports
    for name, peer in zip(peer_names(peers), peers, strict=True):
        yield PEER, name, peer.label, True


def _rows(
    layout: ShearsLayout, board: Scoreboard, benchmark: BenchmarkView, peers: Sequence[Target]
) -> tuple[ShearsRow, ...]:
    scores, subjects = {score.directory: score for score in board.scores}, benchmark.by_label
    rows = []
    for role, label, model, timed in _compared(layout, peers):
        score, subject = scores.get(model), subjects.get(model) if timed else None
        if score is None or (timed and subject is None):
            raise ArtefactMismatch(
                f"the results do not cover '{label}'", where=layout.path, remedy="Run the demo again with --force"
            )
        rows.append(
            ShearsRow(
                role=role,
                label=label,
                accuracy=score.accuracy,
                interval=score.interval,
                bits_per_byte=score.bits_per_byte,
                sparsity=score.sparsity,
                speed=None if subject is None else _speed(subject),
            )
        )
    return tuple(rows)


def _speed(subject: SubjectView) -> Speed:
    return Speed(
        weight_bytes=subject.deployment.weights_bytes,
        ttft_s=subject.metrics["ttft_s"],
        tpot_s=subject.metrics["tpot_s"],
        tokens_per_s=subject.metrics["tokens_per_s"],
        decode_ratio=subject.ratios.get("tpot_s"),
        own_operators=OPENVINO_LIBRARY in subject.facts.settings.get(EXTENSIONS, ""),
    )
