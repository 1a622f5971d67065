"""`python -m search.pick`: make a sub-network document, like best.json, from any row of a search's journal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shearling.command_line import DebugFlag, ForceFlag, JsonFlag, Result, make_app, run_command

if TYPE_CHECKING:
    from shearling.elastic.subnet import Subnet
    from shearling.run import Run

app = make_app("Make a sub-network document, like best.json, from any row of a finished search.")


@app.command()
def pick(
    run: Annotated[Path, typer.Option(help="The run directory, with a finished search.", show_default=False)],
    row: Annotated[
        int,
        typer.Option(min=0, help="The row of journal.jsonl, from 0; pareto.json lists good ones.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option(help="The document to write; keep it where its relative paths hold.", show_default=False)
    ],
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Write one row of the journal as a document that `python -m export --subnet` takes."""
    from shearling.errors import OutputExists
    from shearling.run import Run
    from shearling.strict_json import write_document

    if output.exists() and not force:
        raise OutputExists("the output exists", where=output, remedy="Choose another, or replace it with --force")
    subnet = describe_row(Run(run), row, location=output.parent)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_document(output, subnet)
    metrics = (
        {}
        if subnet.metrics is None
        else {"accuracy": subnet.metrics.accuracy, "adapter_params": subnet.metrics.adapter_params}
    )
    data = {"output": str(output), "id": subnet.id, "row": row, **metrics}
    return Result(data, f"{output}: {subnet.id}\nnext: python -m export --subnet {output}")


def describe_row(run: Run, row: int, *, location: Path) -> Subnet:
    """One row of a finished search as a document.

    Args:
        run: with a search.
        row: of its journal.
        location: the directory that the document will stand in.

    Raises:
        UsageError: the journal has no such row.
        ArtefactMismatch: the super-adapter is not the one that was searched.
    """
    from search.journal import JOURNAL_FILE, read_journal
    from search.stage import Origin, describe_record
    from shearling.artefact import open_artefact
    from shearling.elastic.search_space import SEARCH_SPACE_FILE, read_search_space
    from shearling.errors import ArtefactMismatch, UsageError

    searched = open_artefact(run.search, kind="search")
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    if searched.manifest.parents.get("super_adapter") != adapter.sha256:
        raise ArtefactMismatch(
            "the super-adapter is not the one that was searched", where=adapter.path, remedy="Search again"
        )
    journal = run.search / JOURNAL_FILE
    records = read_journal(journal)
    if row >= len(records):
        raise UsageError(f"row {row} of {len(records)}", where=journal, remedy=f"Rows are 0 to {len(records) - 1}")
    space = read_search_space(adapter.path / SEARCH_SPACE_FILE)
    details = searched.manifest.details
    origin = Origin(
        journal,
        str(details["task"]),
        str(details["best_rule"]),
        int(details["settings"].get("macs_seq_len", 0)) or None,
    )
    return describe_record(records[row], records, adapter, space, location=location, origin=origin)


if __name__ == "__main__":
    run_command(app, program="python -m search.pick")
