"""`report.json`: everything an export claims, with the measurement behind each claim."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from export.number_format import Kernel
from export.verification.nncf_certificate import SparsityCertificate
from export.verification.parity import Gate, Parity
from shearling.model.head import Head
from shearling.strict_json import Document


class ParityCheck(Document):
    """One comparison and its verdict.

    Attributes:
        candidate: what was measured, such as `openvino`.
        reference: against what.
        precision: of the candidate's weights and arithmetic.
        gate: that was applied.
        violations: limits that it broke; empty is a pass.
        rounding: of the reference in float32, where the gate was widened for it; see
            `export.verification.parity.widen`.
    """

    candidate: str
    reference: str
    precision: str
    parity: Parity
    gate: Gate
    violations: tuple[str, ...]
    rounding: float | None = None

    @property
    def verdict(self) -> str:
        """In words."""
        if self.violations:
            return "; ".join(self.violations)
        return (
            "ok"
            if self.rounding is None
            else f"ok: limit {self.gate.max_abs:.1e}, since float32 rounds the reference by {self.rounding:.1e}"
        )


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


class PackedLayer(Document):
    """One weight matrix in the packed form.

    Attributes:
        operator: kind of the operator that reads it, alone or with others.
        node: name of that operator in the file: in an IR, of the nodes that it replaced.
        weights: bf16, int8 or int4.
        encoding: `bitmask` stores what is not zero, `dense` everything.
        shape: [out, in].
        bytes_before: weights and scales in the stock file.
        bytes_after: the packed constant.
    """

    path: str
    operator: str
    node: str
    weights: str
    encoding: str
    shape: tuple[int, int]
    zeros: int
    bytes_before: int
    bytes_after: int


class PackingReport(Document):
    """What a sparse export packed in one format.

    Attributes:
        operators: how many of each kind the file holds.
        kept: weights that stay as the stock file holds them, and why.
    """

    operators: dict[str, int]
    layers: tuple[PackedLayer, ...]
    kept: dict[str, str]

    @property
    def bytes_before(self) -> int:
        """Of all packed layers, in the stock file."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Of all packed layers."""
        return sum(layer.bytes_after for layer in self.layers)


class ExportReport(Document):
    """The content of `report.json`.

    Attributes:
        kernel: of OpenVINO.
        packing: of OpenVINO; None for the stock kernel.
        onnx_kernel, onnx_packing: the same of ONNX.
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
    kernel: Kernel = "stock"
    packing: PackingReport | None = None
    onnx_kernel: Kernel = "stock"
    onnx_packing: PackingReport | None = None

    @property
    def kernels(self) -> dict[str, Kernel]:
        """What runs each format that was written and has a choice."""
        choices: dict[str, Kernel] = {"openvino": self.kernel, "onnx": self.onnx_kernel}
        return {name: kernel for name, kernel in choices.items() if name in self.formats}

    @property
    def packings(self) -> dict[str, PackingReport]:
        """What was packed in each format with the sparse kernel."""
        found = {"openvino": self.packing, "onnx": self.onnx_packing}
        return {name: packing for name, packing in found.items() if packing is not None}

    @property
    def violations(self) -> list[str]:
        """Every broken gate, in words."""
        broken = [
            f"{check.candidate} ({check.precision}) against {check.reference}: {text}"
            for check in self.parity
            for text in check.violations
        ]
        broken += [
            f"{check.format}: {check.pruned - check.zeros} pruned weights are not zero"
            for check in self.zeros
            if check.zeros != check.pruned
        ]
        return broken
