"""Latency tables that nobody measured: a time for every form of a search space, by a rule that a test can repeat."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from search.latency.machine import this_machine
from search.latency.table import TABLE_FILE, Conditions, Interval, LatencyDocument, LatencyEntry
from search.layer_forms import LayerForm, LayerForms
from shearling.artefact import Artefact, open_artefact, write_artefact
from shearling.elastic.merge_rule import keeps_ranks_apart
from shearling.elastic.super_network import load_super_network
from shearling.run import Run, open_frozen
from shearling.strict_json import write_document

CONSTANT_MS = 0.25


def invented_ms(form: LayerForm) -> float:
    """A time that grows with the form, but not in proportion."""
    return 0.01 + 1e-6 * form.out_features * (form.in_features + form.rank)


def conditions(**changes: object) -> Conditions:
    """Those of a stock export in float32."""
    defaults = {
        "machine": this_machine(),
        "runtime": "OpenVINO 1.0",
        "threads": 1,
        "tokens": 16,
        "weight_format": "fp32",
        "sparse_kernel": False,
        "group_size": 0,
        "separate": False,
        "zeros": 0.0,
        "model_sha256": "0" * 64,
    }
    return Conditions.model_validate({**defaults, **changes})


def invented_document(forms: list[LayerForm], **changes: object) -> LatencyDocument:
    """A table of these forms."""
    entries = []
    for form in forms:
        ms = invented_ms(form)
        time = Interval(ms=ms, low_ms=ms, high_ms=ms)
        entries.append(LatencyEntry.model_validate({**asdict(form), "time": time}))
    whole = Interval(ms=1.0, low_ms=1.0, high_ms=1.0)
    return LatencyDocument(
        conditions=conditions(**changes), choice={}, whole=whole, constant_ms=CONSTANT_MS, entries=tuple(entries)
    )


def invent_table(run: Run, path: Path, *, forget: int = 0, **changes: object) -> Artefact:
    """Write a table for a run; `forget` forms are left out."""
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    frozen, network = open_frozen(adapter), load_super_network(run)
    every = LayerForms(network).every()[forget:]
    separate = keeps_ranks_apart(network.space, sparse=frozen.manifest.kind == "sparse")
    parents = {"super_adapter": adapter, frozen.manifest.kind: frozen}
    with write_artefact(path, kind="latency", parents=parents) as draft:
        document = invented_document(every, **{"separate": separate, **changes})
        write_document(draft.directory / TABLE_FILE, document)
    return draft.sealed
