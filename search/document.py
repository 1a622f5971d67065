"""A row of the journal as a sub-network document, such as `best.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from search.evidence import compare_with_largest, find_held_back
from search.journal import Record
from shearling.artefact import Artefact
from shearling.destination import require_directory, require_writable
from shearling.elastic.mixture import Mixture
from shearling.elastic.search_space import SearchSpace
from shearling.elastic.subnet import HeldBack, Metrics, Provenance, Subnet, describe_subnet
from shearling.errors import OutputExists, UsageError
from shearling.evaluation.confidence import wilson_interval
from shearling.evaluation.task import MeasuredSplit
from shearling.model.model_artefact import has_manifest


def check_document(output: Path, *, force: bool) -> None:
    """Refuse early where no document can stand.

    Args:
        output: the file; its directory need not be there.
        force: replace a file that is there.

    Raises:
        OutputExists: there is one, and `force` is false.
        UsageError: no file can be written there, or it would lie in an artefact, which would be as if damaged.
    """
    directory = output.parent.resolve()
    artefact = next((above for above in (directory, *directory.parents) if has_manifest(above)), None)
    if artefact is not None:
        raise UsageError(
            "lies in an artefact, and its manifest does not list it", where=output, remedy=f"Write beside {artefact}"
        )
    if directory.is_dir():
        require_writable(output, whole=True)
    else:
        require_directory(directory)
    if output.exists() and not force:
        raise OutputExists("the output exists", where=output, remedy="Choose another, or replace it with --force")


@dataclass(frozen=True)
class Origin:
    """The search that a record comes from.

    Attributes:
        adapter: the super-adapter that was searched.
        space: its search space.
        journal: the file.
        records: of the journal.
        task: that candidates were measured on.
        best_rule: by which the best was chosen.
        macs_seq_len: tokens of the forward whose MACs were counted.
        split: of the task's rows.
        mixture: that layers chose among; `space` is its space then.
    """

    adapter: Artefact
    space: SearchSpace
    journal: Path
    records: Sequence[Record]
    task: str
    best_rule: str
    macs_seq_len: int | None
    split: MeasuredSplit = "validation"
    mixture: Mixture | None = None


def describe_record(record: Record, origin: Origin, *, location: Path) -> Subnet:
    """A row of the journal as a complete sub-network document.

    Args:
        record: the row.
        origin: the search that it belongs to.
        location: the directory that the document will stand in.
    """
    metrics = Metrics(
        split=origin.split,
        task=origin.task,
        n=record.n_eval,
        accuracy=record.accuracy,
        accuracy_stderr=record.accuracy_stderr,
        loss=record.loss,
        versus_largest=compare_with_largest(record, origin.records),
        held_back=_held_back(record, origin.records),
        adapter_params=record.adapter_params,
        nonzero_params=record.nonzero_params,
        parameters=record.parameters,
        macs_m=record.macs_m,
        macs_seq_len=None if record.macs_m is None else origin.macs_seq_len,
        model_bytes=record.model_bytes,
        latency_ms=record.latency_ms,
        seconds=record.seconds,
    )
    provenance = Provenance(
        algorithm=record.algorithm,
        seed=record.seed,
        evaluations=sum(other.part == "explored" for other in origin.records),
        results_file=_relative(origin.journal, location),
        row=record.i,
        best_rule=origin.best_rule,
    )
    return describe_subnet(
        origin.adapter,
        origin.space.decode(record.choice_idx),
        subnet_id=record.id,
        location=location,
        metrics=metrics,
        provenance=provenance,
        mixture=origin.mixture,
    )


def _held_back(record: Record, records: Sequence[Record]) -> HeldBack | None:
    found = find_held_back(record, records)
    if found is None:
        return None
    return HeldBack(
        n=found.n_eval,
        accuracy=found.accuracy,
        interval=wilson_interval(found.accuracy, found.n_eval),
        rows_sha256=found.eval_split_sha256,
        versus_largest=compare_with_largest(found, records),
    )


def _relative(path: Path, location: Path) -> str:
    return Path(os.path.relpath(path.resolve(), location.resolve())).as_posix()
