"""`report.json`: everything an export claims, with the measurement behind each claim."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from export.nncf_certificate import SparsityCertificate
from export.parity import Gate, Parity
from shearling.architecture import Head
from shearling.strict_json import Document


class ParityCheck(Document):
    """One comparison and its verdict.

    Attributes:
        candidate: what was measured, such as `openvino`.
        reference: against what.
        precision: of the candidate's weights and arithmetic.
        violations: gates that it broke; empty is a pass.
    """

    candidate: str
    reference: str
    precision: str
    parity: Parity
    gate: Gate
    violations: tuple[str, ...]


class ZeroCheck(Document):
    """Zeros of one format against the mask, over all pruned modules.

    Attributes:
        pruned: entries that the mask prunes.
        zeros: of them, entries that are exactly zero in the file.
        extra_zeros: zeros among the kept entries.
        by_layer: zeros in pruned positions per module.
    """

    format: str
    pruned: int
    zeros: int
    extra_zeros: int
    by_module: dict[str, int]


class ExportReport(Document):
    """The content of `report.json`.

    Attributes:
        head: what the model is for.
        narrowed: number of linear layers whose output is narrower than in the base.
        macs_m: multiply-accumulates of one forward over 256 tokens, millions.
    """

    schema_: Literal["shearling.export_report/1"] = pydantic.Field("shearling.export_report/1", alias="schema")
    source: str
    model_id: str
    head: Head
    narrowed: int
    subnet_id: str | None
    merge: str
    exact: bool
    weights: str
    formats: tuple[str, ...]
    parameters: int
    macs_m: float
    adapter_params: int
    sparsity: dict[str, Any] | None
    certificate: SparsityCertificate | None
    zeros: tuple[ZeroCheck, ...]
    parity: tuple[ParityCheck, ...]
    sizes_bytes: dict[str, int]
    seconds: dict[str, float]

    @property
    def violations(self) -> list[str]:
        """Every broken gate, in words."""
        broken = [f"{check.candidate} ({check.precision}) against {check.reference}: {text}" for check in self.parity for text in check.violations]
        broken += [f"{check.format}: {check.pruned - check.zeros} pruned weights are not zero" for check in self.zeros if check.zeros != check.pruned]
        return broken
