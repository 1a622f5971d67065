"""A sub-network document, like best.json, from any row of a finished search: `python -m search pick`."""

from __future__ import annotations

from pathlib import Path

from search.document import Origin, check_document, describe_record
from search.journal import JOURNAL_FILE, read_journal
from search.opening import open_run
from shearling.artefact import open_artefact
from shearling.elastic.subnet import Subnet
from shearling.errors import ArtefactMismatch, UsageError
from shearling.run import Run
from shearling.strict_json import write_document


def pick_row(run: Run, row: int, output: Path, *, force: bool = False) -> Subnet:
    """Write one row of the journal as a document that `python -m export --subnet` takes.

    Args:
        run: with a search.
        row: of its journal.
        output: the document; its directory is made.
        force: replace a file that is there.

    Raises:
        OutputExists, UsageError: see `check_document`.
        UsageError, ArtefactMismatch: see `describe_row`.
    """
    check_document(output, force=force)
    subnet = describe_row(run, row, location=output.parent)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_document(output, subnet)
    return subnet


def describe_row(run: Run, row: int, *, location: Path) -> Subnet:
    """One row of a finished search as a document.

    Args:
        run: with a search.
        row: of its journal.
        location: the directory that the document will stand in.

    Raises:
        UsageError: the journal has no such row, or it is one on the rows that are held back.
        ArtefactMismatch: the super-adapter is not the one that was searched, or the variants are not.
    """
    searched, opened = open_artefact(run.search, kind="search"), open_run(run)
    if searched.manifest.parents.get("super_adapter") != opened.adapter.sha256:
        raise ArtefactMismatch(
            "the super-adapter is not the one that was searched", where=opened.adapter.path, remedy="Search again"
        )
    journal = run.search / JOURNAL_FILE
    records = read_journal(journal)
    if row >= len(records):
        raise UsageError(f"row {row} of {len(records)}", where=journal, remedy=f"Rows are 0 to {len(records) - 1}")
    if records[row].part == "held_back":
        asked = next(record.i for record in records if record.choice_idx == records[row].choice_idx)
        raise UsageError(
            f"row {row} says what row {asked} reaches on the rows that are held back",
            where=journal,
            remedy=f"Pick row {asked}: its document has both",
        )
    details = searched.manifest.details
    searched_with = details["settings"]
    ratios, formats = searched_with.get("ratios", ()), searched_with.get("layer_formats", ())
    opened = opened.mixed(ratios=ratios, formats=formats)
    if opened.mixture is not None and opened.mixture.variants is not None:
        variants = opened.mixture.variants
        if searched.manifest.parents.get("variants") != variants.sha256:
            raise ArtefactMismatch(
                "the variants are not those that were searched", where=variants.path, remedy="Search again"
            )
    origin = Origin(
        opened.adapter,
        opened.space,
        journal,
        records,
        str(details["task"]),
        str(details["best_rule"]),
        int(searched_with.get("macs_seq_len", 0)) or None,
        searched_with.get("split", "validation"),
        opened.mixture,
    )
    return describe_record(records[row], origin, location=location)
