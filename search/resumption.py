"""What an unfinished search leaves to the next one with the same run.

Its journal is continued where the search is the same. Where it is another one, the journal is set aside, and what was
measured counts as far as it answers the same question: the same model, adapter and task, in the same arithmetic. How
rows are batched, on which workers, in what order candidates come, how many rows choose and what is to be saved are no
part of the question. Nothing is deleted before the search is finished, and a journal never.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from search.journal import JOURNAL_FILE, Journal
from search.opening import SearchInputs
from search.piece_store import PIECES_FILE, read_pieces
from search.settings import SearchSettings
from search.strategies.grid import Indices
from shearling.console import log
from shearling.errors import DocumentInvalid, ShearlingError, UsageError
from shearling.strict_json import write_text

SETTINGS_FILE = "settings.json"

JOURNAL_FORM = "records of answers, measured in pieces; a race goes look by look; costs are counted"
"""An unfinished search whose journal is of another form cannot be continued."""

QUESTION = ("split", "precision")
"""Settings that decide what a candidate answers, beside the task, which a digest stands for."""

MIXING = ("ratios", "layer_formats")
"""What layers choose among decides it too, where they do."""

INDIFFERENT = ("batch_size", "evaluations", "latency_table")
"""Settings that may differ in a search that is continued; of the latency table the content counts, not the place."""

PLACE_OF_TASK = "task"
"""The setting that is told as None, as it is where a run's own task is asked: the content counts."""

Consent = Callable[[str], bool]
"""Asks whether to go on, and is told what is lost by it."""


def question_of(settings: SearchSettings, inputs: SearchInputs, task: str) -> str:
    """Digest of what decides the answers of a candidate, beside which of the rows it is asked.

    Args:
        settings: of the search.
        inputs: of the search.
        task: digest of the task; its name or path in the settings says nothing of the content.
    """
    parents = {role: parent.sha256 for role, parent in inputs.parents.items()}
    names = (*QUESTION, *(MIXING if settings.mixes else ()))
    asked = {"parents": parents, PLACE_OF_TASK: None, **{name: getattr(settings, name) for name in names}}
    # The digest of a run's own task is among the parents.
    if inputs.task is None:
        asked["task_sha256"] = task
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def resume(
    directory: Path,
    settings: SearchSettings,
    inputs: SearchInputs,
    *,
    question: str,
    anchors: Sequence[Indices],
    planned: int,
    consent: Consent,
) -> None:
    """Make a directory ready for a search: continue what is in it, or set its journal aside.

    Args:
        directory: of the unfinished search; empty where there is none.
        settings: of the search.
        inputs: of the search.
        question: see `question_of`.
        anchors: candidates that are asked for first.
        planned: most evaluations of the search; a journal of more is set aside.
        consent: asked before evaluations are left behind that answer another question.

    Raises:
        UsageError: there is no consent; nothing has changed then.
        DocumentInvalid: a complete line of the same search is damaged, and there is no consent to leave it behind.
    """
    indifferent = INDIFFERENT if settings.mixes else (*INDIFFERENT, *MIXING)
    deciding = {name: value for name, value in asdict(settings).items() if name not in indifferent}
    deciding[PLACE_OF_TASK] = None
    deciding |= {"anchors": list(anchors), "journal": JOURNAL_FORM, "question": question}
    deciding["latency"] = None if inputs.latency is None else inputs.latency.sha256
    text = json.dumps(deciding, indent=2)
    file = directory / SETTINGS_FILE
    if file.is_file() and file.read_text() == text:
        try:
            read_pieces(directory / PIECES_FILE)
            if len(Journal(directory / JOURNAL_FILE).explored) <= planned:
                return
        except DocumentInvalid as error:
            _leave_damaged(directory, error, consent)
    _leave_behind(directory, question, consent)
    write_text(file, text)


def _leave_damaged(directory: Path, damage: DocumentInvalid, consent: Consent) -> None:
    if not consent(f"the unfinished search of this run cannot be continued: {damage.where}: {damage.message}"):
        raise DocumentInvalid(
            damage.message,
            where=damage.where,
            remedy="Add --start-over: what was measured is kept under another name, and counts no more",
        )
    for path in (directory / JOURNAL_FILE, directory / PIECES_FILE):
        if path.exists():
            log.print(f"{path.name} is set aside as {path.rename(_free_name(path)).name}")


def _leave_behind(directory: Path, question: str, consent: Consent) -> None:
    journal, pieces = directory / JOURNAL_FILE, directory / PIECES_FILE
    if not journal.exists() and not pieces.exists():
        return
    count = journal.read_bytes().count(b"\n") if journal.exists() else 0
    same, other = _count_pieces(pieces, question)
    if not same and (other or count):
        lost = (
            f"an unfinished search of this run has {count} evaluations, made with another model, adapter, task, "
            "precision or version of Shearling: none of them counts in this search"
        )
        if not consent(lost):
            raise UsageError(
                lost,
                where=directory,
                remedy="Search as before to continue it, or add --start-over: its journal is kept under another name",
            )
    if same is None:
        # Of another version of this project; a search must not stumble over it.
        pieces.rename(_free_name(pieces))
    if journal.exists():
        aside = _free_name(journal)
        journal.rename(aside)
        log.print(
            f"an unfinished search with other settings is set aside as {aside.name}"
            + (f"; {same} pieces that it has measured count in this one" if same else "")
        )


def _count_pieces(path: Path, question: str) -> tuple[int | None, int]:
    """How many answer the question, None where they cannot be read, and how many another one."""
    try:
        asked = [line.question for line in read_pieces(path)]
    except ShearlingError:
        return None, 1
    same = asked.count(question)
    return same, len(asked) - same


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return aside
