"""The journal: one line of JSON for every evaluation, in the order of the search, on the disk before the next.

It is the same for any number of workers, `seconds` apart. An unterminated last line is dropped when the journal is
opened again, and the search replays the rest instead of repeating it. What workers have finished before its turn is in
`search.piece_store`.

A sub-network may stand on several lines: evaluated on the first part of the rows that choose, again with more of them
while it stays in the race, and on the rows that are held back. Every line says what it was measured on. Accuracies of
lines with different rows are never compared; answers are, on the rows that both have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from search.cost_words import COSTS
from search.strategies.grid import Indices
from search.strategies.strategy import Cost, Trial
from shearling.errors import ArtefactMissing, DocumentInvalid
from shearling.strict_json import Document, append_line, drop_incomplete_line, parse_json, validate_document

JOURNAL_FILE = "journal.jsonl"

Part = Literal["explored", "raced", "held_back"]
"""Why a line was written: the algorithm asked for the candidate; it was measured on more of the rows that choose; it
was measured on the rows that are held back."""


class Record(Document):
    """One evaluation.

    Attributes:
        i: line number, from 0.
        algorithm: name of the strategy; not looked up, since a journal outlives the package that it came from.
        parent: id of the record that the candidate was derived from.
        choice_idx: index into the values of every group.
        loss: mean negative log-likelihood of the right answers, nats; None where the task does not show it.
        part: why it was evaluated. Those explored have the first rows that choose in common; one that was raced has
            these, and more.
        n_eval: rows evaluated.
        eval_split_sha256: digest of these rows.
        answers: per row how right the answer was, 0 to 1, in an order that all records of the journal share; None in
            journals from before they were kept.
        losses: per row, nats, likewise.
        macs_m: multiply-accumulates of one forward, in millions; None where the search did not count them.
        adapter_params: weights of the sub-adapter.
        nonzero_params: nonzero weights of the model as it will be exported.
        parameters: all weights of the model as it will be exported.
        model_bytes: of the exported weights; None in journals from before they were counted.
        latency_ms: of one forward of the exported model, predicted; None where the search did not ask for it.
        cost_kind: what this search saves.
        seconds: wall time of what this record added; the one field that a repetition changes.
        cached: the candidate had been evaluated before, and its outcome was reused.
        pareto: explored, and no explored record up to this one dominates it.
    """

    i: int = pydantic.Field(ge=0)
    id: str
    parent: str | None
    algorithm: str
    generation: int = pydantic.Field(ge=0)
    seed: int
    choice_idx: tuple[int, ...]
    accuracy: float
    accuracy_stderr: float | None
    loss: float | None
    part: Part = "explored"
    n_eval: int
    eval_split_sha256: str
    answers: tuple[float, ...] | None = None
    losses: tuple[float, ...] | None = None
    macs_m: float | None = None
    adapter_params: int
    nonzero_params: int
    parameters: int | None = None
    cost_kind: Cost = "adapter_params"
    model_bytes: int | None = None
    latency_ms: float | None = None
    seconds: float
    cached: bool
    pareto: bool
    status: Literal["ok"] = "ok"

    @pydantic.model_validator(mode="after")
    def _has_cost(self) -> Record:
        if self._cost is None:
            raise ValueError(f"the search saves {self.cost_kind}, which this record does not hold")
        return self

    @property
    def cost(self) -> float:
        """What the search saves, in the unit of its field."""
        return self._cost or 0.0

    @property
    def _cost(self) -> float | None:
        field = COSTS[self.cost_kind].field
        return 0.0 if field is None else getattr(self, field)

    @property
    def axis_kind(self) -> Cost:
        """What stands on the axis of a chart; where nothing is saved, what tells candidates apart."""
        return "adapter_params" if self.cost_kind == "none" else self.cost_kind

    @property
    def axis_value(self) -> float:
        """That, in the unit of the axis."""
        words = COSTS[self.axis_kind]
        return float(getattr(self, words.field or "")) / words.scale

    @property
    def trial(self) -> Trial:
        """What a strategy is told."""
        return Trial(self.choice_idx, self.accuracy, self.cost)


class Journal:
    """An open journal; append only.

    Args:
        path: the file; created if absent, repaired if its last line is incomplete.

    Attributes:
        records: all, in order.
        explored: those that a search algorithm asked for, in order.

    Raises:
        DocumentInvalid: a complete line is not a record; names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            drop_incomplete_line(path)
        self.records: list[Record] = []
        self.explored: list[Record] = []
        self._measured: dict[tuple[Indices, Part, int | None], Record] = {}
        for record in read_journal(path) if path.exists() else []:
            self._keep(record)

    def find(self, indices: Indices, part: Part = "explored", *, rows: int | None = None) -> Record | None:
        """The first record of a candidate.

        Args:
            indices: the candidate.
            part: why it was evaluated.
            rows: so many of them exactly; None takes any.
        """
        return self._measured.get((indices, part, rows))

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns."""
        append_line(self.path, record)
        self._keep(record)

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if record.part == "explored":
            self.explored.append(record)
        for rows in (None, record.n_eval):
            self._measured.setdefault((record.choice_idx, record.part, rows), record)


def read_journal(path: Path) -> list[Record]:
    """Every record of a journal.

    Raises:
        ArtefactMissing: no such file.
        DocumentInvalid: names the line.
    """
    if not path.is_file():
        raise ArtefactMissing("no journal here", where=path, remedy="Make it with: python -m search")
    records: list[Record] = []
    for number, line in enumerate(path.read_bytes().splitlines()):
        where = f"{path}, line {number + 1}"
        record = validate_document(parse_json(line, where=where), Record, where=where)
        if record.i != number:
            raise DocumentInvalid(
                f"i is {record.i}, expected {number}", where=where, remedy="Lines were removed or added: search again"
            )
        records.append(record)
    return records
