"""What was measured, a line for every piece, on the disk as soon as it is known.

The journal is written in the order of the search. Workers finish in another one, and what they have finished before
its turn stands here alone. A process that is killed loses the pieces in flight and nothing else; a search with other
settings takes from here what answers the same question.
"""

from __future__ import annotations

from pathlib import Path

from search.pieces import Piece, PieceOutcome
from search.row_split import RowSplit
from search.strategies.grid import Indices
from shearling.strict_json import Document, append_line, drop_incomplete_line, parse_json, validate_document

PIECES_FILE = "pieces.jsonl"

Key = tuple[Indices, str]
"""A candidate, and the digest of the rows."""


class PieceLine(Document):
    """One line.

    Attributes:
        question: digest of what else decides the answers: the model, the adapter, the task, the arithmetic.
        choice_idx: the candidate; empty: the frozen model.
        rows_sha256: digest of the rows.
        outcome: what was measured.
    """

    question: str
    choice_idx: tuple[int, ...]
    rows_sha256: str
    outcome: PieceOutcome


class PieceStore:
    """The file, open; append only.

    Args:
        path: created with the first piece, repaired if its last line is incomplete.
        question: see `PieceLine`; lines with another one stay in the file, and answer nothing here.
        split: of the rows.

    Raises:
        DocumentInvalid: a complete line is not what it should be; names it.
    """

    def __init__(self, path: Path, question: str, split: RowSplit) -> None:
        self._path = path
        self._question = question
        self._split = split
        self._known: dict[Key, PieceOutcome] = {}
        for line in read_pieces(path):
            if line.question == question:
                self._known.setdefault((line.choice_idx, line.rows_sha256), line.outcome)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, piece: Piece) -> PieceOutcome | None:
        """What was measured of the same candidate on the same rows."""
        return self._known.get(self._key(piece))

    def keep(self, piece: Piece, outcome: PieceOutcome) -> None:
        """Add a piece; it is on the disk when this returns."""
        key = self._key(piece)
        line = PieceLine(question=self._question, choice_idx=key[0], rows_sha256=key[1], outcome=outcome)
        append_line(self._path, line)
        self._known[key] = outcome

    def _key(self, piece: Piece) -> Key:
        return piece.indices, self._split.sha256(piece.positions)


def read_pieces(path: Path) -> list[PieceLine]:
    """Every line of the file; none where there is no file. An incomplete last line is dropped.

    Raises:
        DocumentInvalid: names the line.
    """
    if not path.exists():
        return []
    drop_incomplete_line(path)
    lines = []
    for number, line in enumerate(path.read_bytes().splitlines()):
        where = f"{path}, line {number + 1}"
        lines.append(validate_document(parse_json(line, where=where), PieceLine, where=where))
    return lines
