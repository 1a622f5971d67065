"""`python -m search latency`: time every form of the layers once on this machine, and keep the table."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from search.latency.stack import build_stack
from search.latency.stopwatch import Forward, summarise_ms
from search.latency.table import (
    TABLE_FILE,
    TABLE_SCHEMA,
    Conditions,
    Interval,
    LatencyDocument,
    LatencyEntry,
    LatencyTable,
)
from search.latency.target import LatencyTarget, open_target
from search.layer_forms import LayerForm, LayerForms
from search.opening import SearchableRun, open_run
from search.stored_bytes import StoredForm
from shearling.artefact import Artefact, check_destination, open_artefact, write_artefact
from shearling.console import log, progress
from shearling.elastic.merge_rule import keeps_ranks_apart
from shearling.elastic.mixture import LayerFormat
from shearling.elastic.super_network import assemble_super_network
from shearling.errors import ArtefactMismatch, OutputExists, UsageError
from shearling.run import Run, open_frozen
from shearling.strict_json import read_document, write_document

SWEEPS = 2
"""Everything is measured so many times, there and back, so that a machine that changes meanwhile is noticed."""

MOST_COPIES, MOST_COPIES_OF_LONG = 64, 16
"""Layers of a stack; of a long sequence fewer, whose time the products decide and not the memory."""
LONG_TOKENS = 16


@dataclass(frozen=True)
class MeasuredTable:
    """A table, and whether it was there already."""

    table: LatencyTable
    reused: bool


def measure_latencies(
    run: Run,
    model: Path,
    *,
    output: Path,
    threads: int,
    tokens: int | None = None,
    seconds: float = 1.0,
    ratios: Sequence[float] | None = None,
    formats: Sequence[LayerFormat] | None = None,
    force: bool = False,
) -> MeasuredTable:
    """Measure a table, unless there is one that fits.

    Args:
        run: with a super-adapter.
        model: an export of one of its sub-networks, in the form that is to be shipped.
        output: where the `latency` artefact will stand.
        threads: of the runtime.
        tokens: of the forward; None takes those whose MACs the recipe counts.
        seconds: for each form and each of two sweeps.
        ratios: shares of zeros that layers choose among; None takes those of the recipe.
        formats: number formats that layers choose among; None takes those of the recipe.
        force: measure again, and replace what is there.

    Raises:
        UsageError: all sub-networks take the same time.
        OutputExists: the table that is there does not fit; says what differs.
        ArtefactError: the run or the export is missing, damaged, or they do not belong together.
    """
    opened = open_run(run)
    opened = opened.mixed(
        ratios=opened.section.ratios if ratios is None else ratios,
        formats=opened.section.layer_formats if formats is None else formats,
    )
    frozen = open_frozen(opened.adapter)
    network = assemble_super_network(
        frozen, opened.adapter, opened.space, variants=None if opened.mixture is None else opened.mixture.variants
    )
    forms = LayerForms(network)
    _check_differ(forms, lambda form: form, run)
    target = open_target(
        model,
        adapter=opened.adapter,
        frozen=frozen,
        space=opened.space,
        threads=threads,
        tokens=tokens or opened.section.macs_seq_len,
    )
    _check_differ(forms, target.conditions.timed, run)
    _check_merge(target, keeps_ranks_apart(opened.space, sparse=frozen.manifest.kind == "sparse"))
    if output.exists() and not force:
        return MeasuredTable(_reuse(output, target, forms), reused=True)
    check_destination(output, kind="latency", force=force)
    document = _measure(target, forms, seconds=seconds)
    return MeasuredTable(_write(document, opened, frozen, target, output, force=force), reused=False)


def _check_differ(forms: LayerForms, timed: Callable[[LayerForm], LayerForm], run: Run) -> None:
    """Refuse to measure where it makes no difference; what has zeros is faster for the sparse kernel alone."""
    if all(len(set(map(timed, found))) == 1 for found in forms.variants().values()):
        raise UsageError(
            "every sub-network of this run takes the same time: its ranks are merged, it has no widths, and layers "
            "choose no formats and no zeros that are packed away",
            where=run.path,
            remedy="Search by accuracy alone, which is what --cost auto does, or export with --sparse-kernel",
        )


def _check_merge(target: LatencyTarget, separate: bool) -> None:
    if target.conditions.separate != separate:
        raise ArtefactMismatch(
            "it was exported with another --merge than the default, and its layers are others than a search counts",
            where=target.export.path,
            remedy="Export it again without --merge",
        )


def _reuse(output: Path, target: LatencyTarget, forms: LayerForms) -> LatencyTable:
    """The table that is there, if it says what a new one would."""
    artefact = open_artefact(output, kind="latency")
    document = read_document(output / TABLE_FILE, LatencyDocument, schema=TABLE_SCHEMA)
    table = LatencyTable(document, sha256=artefact.sha256, where=output)
    differences = target.conditions.differences(document.conditions)
    if not differences:
        try:
            table.check_covers(forms.every())
        except ArtefactMismatch as error:
            differences = [error.message]
    if differences:
        raise OutputExists(
            f"the table that is there does not fit: {'; '.join(differences)}",
            where=output,
            remedy="Measure again with --force, or write elsewhere with --output",
        )
    return table


def _measure(target: LatencyTarget, forms: LayerForms, *, seconds: float) -> LatencyDocument:
    conditions = target.conditions
    every = sorted(set(map(conditions.timed, forms.every())))
    samples: dict[LayerForm, list[float]] = {form: [] for form in every}
    whole_samples: list[float] = []
    log.print(f"{len(every)} forms of layers; tokens: {conditions.tokens}, threads: {conditions.threads}")
    whole = Forward(target.xml, threads=conditions.threads, tokens=conditions.tokens)
    with progress("measuring layers", total=SWEEPS * (len(every) + 1)) as advance:
        for sweep in range(SWEEPS):
            whole_samples += whole.samples_ms(seconds=seconds)
            advance(note="the whole model")
            for form in every if sweep % 2 == 0 else reversed(every):
                copies = _copies(form, target)
                samples[form] += _time_stack(form, conditions, copies=copies, seconds=seconds)
                advance(note=str(form))
    entries = tuple(_entry(form, summarise_ms(samples[form], layers=_copies(form, target))) for form in every)
    times = {entry.form: entry.time.ms for entry in entries}
    measured = summarise_ms(whole_samples)
    return LatencyDocument(
        conditions=conditions,
        choice=target.choice,
        whole=measured,
        constant_ms=measured.ms - math.fsum(times[conditions.timed(form)] for form in forms.of(target.choice).values()),
        entries=entries,
    )


def _entry(form: LayerForm, time: Interval) -> LatencyEntry:
    return LatencyEntry.model_validate({**asdict(form), "time": time})


def _copies(form: LayerForm, target: LatencyTarget) -> int:
    """So many layers that together they take as much memory as the model, within reason."""
    conditions = target.conditions
    stored = StoredForm(conditions.of(form).weight_format, group_size=conditions.group_size or 64)
    most = MOST_COPIES if conditions.tokens < LONG_TOKENS else MOST_COPIES_OF_LONG
    return max(2, min(most, -(-target.model_bytes // stored.matrix_bytes(form.out_features, form.in_features))))


def _time_stack(form: LayerForm, conditions: Conditions, *, copies: int, seconds: float) -> list[float]:
    import openvino

    # Through files, as an export is read: what restores a weight is recognised there.
    with tempfile.TemporaryDirectory(prefix="shearling-latency-") as directory:
        xml = Path(directory) / "stack.xml"
        stack = build_stack(form, conditions.of(form), copies=copies)
        openvino.save_model(stack, str(xml), compress_to_fp16=conditions.weight_format == "fp16")
        return Forward(
            xml, threads=conditions.threads, tokens=conditions.tokens, packed=conditions.sparse_kernel
        ).samples_ms(seconds=seconds)


def _write(
    document: LatencyDocument,
    opened: SearchableRun,
    frozen: Artefact,
    target: LatencyTarget,
    output: Path,
    *,
    force: bool,
) -> LatencyTable:
    parents: dict[str, Artefact] = {
        "super_adapter": opened.adapter,
        frozen.manifest.kind: frozen,
        "export": target.export,
    }
    with write_artefact(output, kind="latency", parents=parents, force=force) as draft:
        write_document(draft.directory / TABLE_FILE, document)
        draft.details |= {"entries": len(document.entries), "constant_ms": document.constant_ms}
    return LatencyTable(document, sha256=draft.sealed.sha256, where=output)
