"""The latency table: how long each form of a layer takes on the target, and what the rest of the model takes.

    predicted time of a candidate = constant + sum over its elastic layers of the time of their form

The constant is what a measured whole model takes beyond its elastic layers: embedding, head, attention, norms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pydantic

from search.latency.machine import Machine
from search.layer_forms import LayerForm
from shearling.artefact import Artefact, open_artefact
from shearling.errors import ArtefactMismatch
from shearling.strict_json import Document, read_document

TABLE_FILE = "latency.json"
TABLE_SCHEMA = "shearling.latency/1"

MAKE_AGAIN = "Measure again with: python -m search latency"


class Interval(Document):
    """Time of one forward: the median, and the middle half of the samples."""

    ms: float = pydantic.Field(gt=0)
    low_ms: float
    high_ms: float


class LatencyEntry(Document):
    """One form of a layer; see `LayerForm`."""

    out_features: int = pydantic.Field(ge=1)
    in_features: int = pydantic.Field(ge=1)
    rank: int = pydantic.Field(ge=0)
    percent: int = pydantic.Field(0, ge=0, lt=100)
    bits: Literal[0, 4, 8] = 0
    time: Interval

    @property
    def form(self) -> LayerForm:
        """What was measured."""
        return LayerForm(self.out_features, self.in_features, self.rank, self.percent, self.bits)


class Conditions(Document):
    """What a latency depends on beside the form of a layer.

    Attributes:
        runtime: with its version.
        threads: of the runtime.
        tokens: of the sequence, batch 1, with nothing before it.
        weight_format: of the exported weights.
        sparse_kernel: whether their zeros are packed away.
        group_size: columns that share a scale in int4; 0 elsewhere.
        separate: whether ranks stay beside the weights.
        zeros: share of zeros in what is packed, 0 to 1; 0 where nothing is.
        model_sha256: of the weights of the whole model that was measured.
    """

    machine: Machine
    runtime: str
    threads: int = pydantic.Field(ge=1)
    tokens: int = pydantic.Field(ge=1)
    weight_format: str
    sparse_kernel: bool
    group_size: int
    separate: bool
    zeros: float
    model_sha256: str

    def of(self, form: LayerForm) -> Conditions:
        """Those of one form of a layer, which may have its own format and its own share of zeros."""
        changes: dict[str, object] = {}
        if form.bits:
            changes["weight_format"] = f"int{form.bits}"
        if form.percent and self.sparse_kernel:
            changes["zeros"] = form.percent / 100
        return self.model_copy(update=changes)

    def timed(self, form: LayerForm) -> LayerForm:
        """The form whose time this one has: stock kernels compute with zeros as with all else."""
        return form if self.sparse_kernel else replace(form, percent=0)

    def differences(self, other: Conditions) -> list[str]:
        """What other conditions have in another way, in words: what they have, and what these have."""
        mine, others = (conditions.model_dump(exclude={"machine"}) for conditions in (self, other))
        mine["machine"], others["machine"] = self.machine.processor, other.machine.processor
        told = [
            f"{name.replace('_', ' ')} {others[name]}, not {mine[name]}" for name in mine if mine[name] != others[name]
        ]
        if not told and self.machine != other.machine:
            told = [f"a machine with {other.machine.cpus} processors or other features, not {self.machine.cpus}"]
        return told


class LatencyDocument(Document):
    """The content of `latency.json`.

    Attributes:
        choice: of the sub-network whose whole model was measured.
        whole: time of that model.
        constant_ms: of it, beyond its elastic layers.
        entries: every form of the search space, each once.
    """

    schema_: Literal["shearling.latency/1"] = pydantic.Field("shearling.latency/1", alias="schema")
    conditions: Conditions
    choice: dict[str, int]
    whole: Interval
    constant_ms: float
    entries: tuple[LatencyEntry, ...]


class LatencyTable:
    """A table, open.

    Args:
        document: its content.
        sha256: of its artefact.
        where: it was read from.
    """

    def __init__(self, document: LatencyDocument, *, sha256: str, where: Path) -> None:
        self.document = document
        self.sha256 = sha256
        self.where = where
        self._ms = {entry.form: entry.time.ms for entry in document.entries}

    def __str__(self) -> str:
        conditions = self.document.conditions
        kernel = " for the sparse kernel" if conditions.sparse_kernel else ""
        return (
            f"{conditions.runtime}, {conditions.weight_format}{kernel}, threads: {conditions.threads}, "
            f"tokens: {conditions.tokens}, {conditions.machine.processor}"
        )

    def predict_ms(self, forms: Mapping[str, LayerForm]) -> float:
        """Time of one forward of a model whose elastic layers have these forms."""
        conditions = self.document.conditions
        return self.document.constant_ms + sum(self._ms[conditions.timed(form)] for form in forms.values())

    def check_covers(self, forms: Sequence[LayerForm]) -> None:
        """Refuse to predict what was not measured.

        Raises:
            ArtefactMismatch: a form has no entry.
        """
        timed = dict.fromkeys(map(self.document.conditions.timed, forms))
        missing = [form for form in timed if form not in self._ms]
        if missing:
            raise ArtefactMismatch(
                f"has no time for {missing[0]}, nor for {len(missing) - 1} other forms of this search space"
                if len(missing) > 1
                else f"has no time for {missing[0]}",
                where=self.where,
                remedy=MAKE_AGAIN,
            )


def open_table(path: Path, *, frozen: Artefact, separate: bool) -> LatencyTable:
    """Open a table for a search.

    Args:
        path: the `latency` artefact.
        frozen: the model under the adapter.
        separate: whether its ranks stay beside the weights.

    Raises:
        ArtefactError: it is missing, damaged, or was measured for another model.
    """
    artefact = open_artefact(path, kind="latency")
    kind = frozen.manifest.kind
    if artefact.manifest.parents.get(kind) != frozen.sha256:
        raise ArtefactMismatch(
            f"the latency table was measured for another {kind} model", where=path, remedy=MAKE_AGAIN
        )
    document = read_document(path / TABLE_FILE, LatencyDocument, schema=TABLE_SCHEMA)
    if document.conditions.separate != separate:
        raise ArtefactMismatch(
            "the latency table was measured with ranks "
            + ("beside the weights" if document.conditions.separate else "merged")
            + ", and the sub-networks of this run will be exported the other way",
            where=path,
            remedy=MAKE_AGAIN,
        )
    return LatencyTable(document, sha256=artefact.sha256, where=path)
