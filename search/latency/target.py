"""The target of a latency table: an exported sub-network of a run, and the conditions that it is measured under."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino

from search.latency.machine import this_machine
from search.latency.table import Conditions
from shearling.artefact import Artefact, open_artefact
from shearling.elastic.search_space import SearchSpace
from shearling.elastic.weight_grid import GROUP_SIZE
from shearling.errors import ArtefactMismatch, DocumentInvalid, ModelUnsupported, UsageError
from shearling.model.checkpoint_safety import CONFIG
from shearling.model.context_length import stated_length
from shearling.strict_json import read_json

MODEL_XML = "openvino/openvino_model.xml"
MODEL_BIN = "openvino/openvino_model.bin"

GROUP_WITHOUT_DATA = 128
"""Columns that share a scale in int4 that has seen no text."""


@dataclass(frozen=True)
class LatencyTarget:
    """See the module.

    Attributes:
        export: verified.
        choice: of the sub-network that it holds.
        conditions: that everything is measured under.
        model_bytes: of its weights.
    """

    export: Artefact
    choice: dict[str, int]
    conditions: Conditions
    model_bytes: int

    @property
    def xml(self) -> Path:
        """Its IR."""
        return self.export.path / MODEL_XML


def open_target(
    directory: Path, *, adapter: Artefact, frozen: Artefact, space: SearchSpace, threads: int, tokens: int
) -> LatencyTarget:
    """Open an export of one sub-network of a run.

    Args:
        directory: the `export` artefact, with OpenVINO.
        adapter: that the sub-networks of the run are cut from.
        frozen: the model under it.
        space: of the adapter.
        threads: of the runtime.
        tokens: of the sequence.

    Raises:
        ArtefactError: it is missing, damaged, of another run, or does not say which sub-network it holds.
        ModelUnsupported: it has no OpenVINO model.
        UsageError: the model has fewer positions.
    """
    export = open_artefact(directory, kind="export")
    if export.manifest.parents.get("super_adapter") != adapter.sha256:
        raise ArtefactMismatch(
            "it is no sub-network of this run",
            where=directory,
            remedy="Export one: python -m search describe, then python -m export --subnet",
        )
    if MODEL_XML not in export.manifest.files:
        raise ModelUnsupported("it has no OpenVINO model", where=directory, remedy="Export with --formats openvino")
    context = stated_length(read_json(frozen.path / CONFIG))
    if context is not None and tokens > context:
        raise UsageError(
            f"{tokens} tokens exceed the context of {context}",
            where=directory,
            remedy=f"Give --tokens {context} or fewer, and the same as macs_seq_len of [search]",
        )
    details = export.manifest.details
    choice = details.get("choice")
    if not isinstance(choice, dict):
        raise ArtefactMismatch("it does not say which sub-network it holds", where=directory, remedy="Export it again")
    try:
        space.check(choice)
    except DocumentInvalid as error:
        raise ArtefactMismatch(
            f"its sub-network is of another search space: {error.where}: {error.message}",
            where=directory,
            remedy="Export one of this space: python -m search describe with the same --ratios and --layer-formats",
        ) from None
    # Decoders of integers are packed without zeros, too.
    packed = details["kernels"].get("openvino") == "sparse"
    pruned = frozen.manifest.details["sparsity"]["achieved_scope"] if frozen.manifest.kind == "sparse" else 0.0
    weights = export.manifest.files[MODEL_BIN]
    conditions = Conditions(
        machine=this_machine(),
        runtime=f"OpenVINO {openvino.__version__.partition('-')[0]}",
        threads=threads,
        tokens=tokens,
        weight_format=str(details["weight_format"]),
        sparse_kernel=packed,
        group_size=_group_size(directory, details),
        separate=details["merge"] == "separate",
        zeros=round(float(pruned), 4) if packed else 0.0,
        model_sha256=weights.sha256,
    )
    return LatencyTarget(export, dict(choice), conditions, weights.bytes)


def _group_size(directory: Path, details: dict[str, Any]) -> int:
    if details.get("layer_formats"):
        return GROUP_SIZE
    if details["weight_format"] != "int4":
        return 0
    quantization = read_json(directory / "report.json").get("quantization") or {}
    return int(quantization.get("group_size", GROUP_WITHOUT_DATA))
