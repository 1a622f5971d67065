"""`report.json`: everything an export claims, with the measurement behind each claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pydantic

from export.formats.written_format import Proof, WrittenFormat
from export.merged_model import MergedModel
from export.packing.packing_report import PackingReport
from export.plan import ExportPlan
from export.quantization.quantize import Quantized
from export.quantization.settings import Algorithm, Preset, method_of
from export.reporting.lineage import Lineage, find_lineage, without_directory
from export.request import Kernel
from export.verification.nncf_certificate import SparsityCertificate
from export.verification.parity_check import ParityCheck, weights_precision
from export.verification.task_check import TaskCheck
from export.verification.tokenizer_check import TokenizerCheck
from export.verification.zeros import ZeroCheck
from shearling.elastic.size import measure_model
from shearling.elastic.subnet_mixture import MixtureReference
from shearling.model.head import Head
from shearling.registry.export_formats import EXPORT_FORMATS
from shearling.strict_json import Document

MACS_TOKENS = 256
"""Length of the sequence whose multiply-accumulates a report counts."""


class QuantizationReport(Document):
    """How int4 was made.

    Attributes:
        preset: None where algorithms of NNCF made it.
        algorithms: of NNCF; none where a preset was used, and in reports of older versions.
        group_size: columns that share a scale; narrow matrices may have less.
        dataset: the calibration texts.
        samples: windows of them that matrices were rounded on.
        all_layers: whether the embedding and the head are in int4 too.
        ratio: share of the layers' weights that was asked for in int4.
        matrices: in int4; other linear layers are int8, and so are the embedding and the head, but in plain ONNX, which
            has them in float32 unless they are in int4 too.
        layer_error: mean over matrices in int4 of the squared error of its outputs, as a share of their squares; before
            scales were tuned. None where NNCF rounded.
        kl_before: mean KL to the model in float32 over the first tenth of the tuning of scales, nats; None without.
        kl_after: over the last tenth.
        seconds: that it took.
        put_back: pruned weights that an algorithm rounded to another number than zero, and which are zero again.
    """

    preset: Preset | None
    algorithms: tuple[Algorithm, ...] = ()
    group_size: int
    dataset: tuple[str, ...]
    samples: int
    all_layers: bool
    ratio: float
    matrices: int
    layer_error: float | None
    kl_before: float | None
    kl_after: float | None
    seconds: float
    put_back: int = 0

    @property
    def method(self) -> str:
        """What made the integers, in words."""
        return method_of(self.preset, self.algorithms)

    @property
    def mended(self) -> str | None:
        """How many zeros were put back, in words."""
        if not self.put_back:
            return None
        return f"{self.put_back:,} pruned weights that rounding had made another number are zero again"


class ExportReport(Document):
    """The content of `report.json`.

    Attributes:
        head: what the model is for.
        narrowed: number of linear layers whose output is narrower than in the base.
        weight_format: of the formats that take one; the others have the type of the frozen model's files.
        number_formats: directory -> of its weights; none in reports of older versions.
        quantization: how int4 was made on calibration text; None where no text was seen.
        mixture: what layers chose of zeros and formats; None where they had no choice.
        trained_bits: of the integers that the weights were trained on; None where they were not.
        sparsity: how the frozen model was pruned; None where it was not, or a dense merge has taken its zeros.
        certificate: NNCF's count of zeros in the merged weights.
        integers_certificate: its count in the numbers that integers stand for, where these were chosen before any file
            was written.
        zeros_left: what a dense merge left of them, which it does not promise; None elsewhere.
        unmeasured: directories that were not run; of a model among them the zeros may have been counted.
        macs_m: multiply-accumulates of one forward over 256 tokens, millions.
        kernels: directory -> what runs it, for each that has a choice.
        tasks: answers of files with rounded weights against those of the merged model.
        tokenizers: those that formats have converted, against the model's own.
        packings: directory -> what was packed there for the sparse kernel.
        lineage: licence, data, recipe and commands; None in reports of older versions.
    """

    schema_: Literal["shearling.export_report/2"] = pydantic.Field("shearling.export_report/2", alias="schema")
    source: str
    model_id: str
    head: Head
    narrowed: int
    subnet_id: str | None
    merge: str
    exact: bool
    weight_format: str
    number_formats: dict[str, str] = pydantic.Field(default_factory=dict)
    quantization: QuantizationReport | None = None
    trained_bits: int | None = None
    mixture: MixtureReference | None = None
    formats: tuple[str, ...]
    parameters: int
    macs_m: float
    adapter_params: int
    sparsity: dict[str, Any] | None
    certificate: SparsityCertificate | None
    integers_certificate: SparsityCertificate | None = None
    zeros: tuple[ZeroCheck, ...]
    zeros_left: ZeroCheck | None = None
    unmeasured: tuple[str, ...] = ()
    parity: tuple[ParityCheck, ...]
    tasks: tuple[TaskCheck, ...]
    tokenizers: tuple[TokenizerCheck, ...] = ()
    sizes_bytes: dict[str, int]
    seconds: dict[str, float]
    kernels: dict[str, Kernel]
    packings: dict[str, PackingReport]
    lineage: Lineage | None = None

    @property
    def rounded(self) -> bool:
        """Whether a format holds integers instead of the weights."""
        return self.weight_format.startswith("int") and any(
            EXPORT_FORMATS.get(name).takes_weight_format for name in self.formats
        )

    @property
    def left_by_merge(self) -> str | None:
        """What a dense merge left of the zeros, in words."""
        left = self.zeros_left
        return (
            None if left is None else f"merged densely: {left.zeros:,} of {left.pruned:,} pruned weights are still zero"
        )

    @property
    def counted_by_nncf(self) -> str | None:
        """What NNCF counted, in words."""
        merged, integers = self.certificate, self.integers_certificate
        if merged is None:
            return None
        if not merged.modules:
            return "no mask prunes anything"
        beside = "" if integers is None else f", {integers.sparsity:.2%} in the integers of {integers.modules}"
        return f"NNCF counts {merged.sparsity:.2%} zeros in {merged.modules} pruned modules{beside}"

    @property
    def stored_as(self) -> str:
        """The number formats in words, such as `int8 in openvino/, bf16 in model/`."""
        directories: dict[str, list[str]] = {}
        for name, number_format in self.number_formats.items():
            directories.setdefault(number_format, []).append(f"{name}/")
        if len(directories) < 2:
            return next(iter(directories), self.weight_format)
        return ", ".join(f"{item} in {' and '.join(names)}" for item, names in directories.items())

    @property
    def judged(self) -> bool:
        """Whether anything that was written was held to a gate."""
        return bool(self.sizes_bytes.keys() - set(self.unmeasured)) or bool(self.zeros)

    @property
    def violations(self) -> list[str]:
        """Every broken gate, in words."""
        broken = [
            f"{check.candidate} ({check.precision}) against {check.reference}: {text}"
            for check in self.parity
            if check.rejects
            for text in check.violations
        ]
        broken += [f"{check.candidate}: {check.violation}" for check in self.tasks if check.violation is not None]
        broken += [f"{check.candidate}: {check.violation}" for check in self.tokenizers if check.violation is not None]
        broken += [
            f"{check.format}: {check.pruned - check.zeros} pruned weights are not zero"
            for check in self.zeros
            if check.zeros != check.pruned
        ]
        return broken


def build_report(
    plan: ExportPlan,
    merged: MergedModel,
    certificate: SparsityCertificate | None,
    written: Sequence[WrittenFormat],
    proofs: Sequence[Proof],
    quantized: Quantized | None = None,
    integers_certificate: SparsityCertificate | None = None,
) -> ExportReport:
    """Put together what was planned, merged, counted by NNCF, written and found in the files."""
    merge_checks = () if merged.merge_check is None else (merged.merge_check,)
    own_type = weights_precision(merged.subject.model)
    measured = {item.name for item, proof in zip(written, proofs, strict=False) if proof.measured}
    return ExportReport(
        source=plan.source.name,
        model_id=plan.model_id,
        head=plan.head,
        narrowed=0 if plan.merge is None else plan.merge.narrowed,
        subnet_id=None if plan.merge is None else plan.merge.opened.subnet.id,
        merge="none" if plan.merge is None else plan.merge.mode,
        exact=plan.merge is None or plan.merge.exact,
        weight_format=plan.request.weight_format,
        quantization=_describe_quantization(plan, quantized),
        trained_bits=None if plan.merge is None else plan.merge.grid_bits,
        mixture=None if plan.merge is None else plan.merge.mixture,
        number_formats={
            item.name: item.planned.storage.weight_format.name if item.planned.entry.takes_weight_format else own_type
            for item in written
            if not item.planned.entry.needs_adapter
        },
        formats=tuple(item.planned.entry.name for item in written),
        parameters=sum(parameter.numel() for parameter in merged.subject.model.parameters()),
        macs_m=measure_model(merged.subject.model).macs(tokens=MACS_TOKENS) / 1e6,
        adapter_params=merged.adapter_params,
        sparsity=None if merged.zeros_left is not None else plan.frozen.manifest.details.get("sparsity"),
        certificate=certificate,
        integers_certificate=integers_certificate,
        zeros=tuple(proof.zeros for proof in proofs if proof.zeros is not None),
        zeros_left=merged.zeros_left,
        unmeasured=tuple(item.name for item in written if item.name not in measured),
        parity=(*merge_checks, *(check for proof in proofs for check in proof.parity)),
        tasks=tuple(proof.task for proof in proofs if proof.task is not None),
        tokenizers=tuple(proof.tokenizer for proof in proofs if proof.tokenizer is not None),
        sizes_bytes={item.name: item.size_bytes for item in sorted(written, key=lambda item: item.name)},
        seconds={item.name: item.seconds for item in written},
        kernels={
            item.name: "sparse" if item.runs_packed else "stock"
            for item in written
            if item.planned.entry.has_sparse_kernel
        },
        packings={item.name: item.packing for item in written if item.packing is not None},
        lineage=find_lineage(plan),
    )


def _describe_quantization(plan: ExportPlan, quantized: Quantized | None) -> QuantizationReport | None:
    planned = plan.quantization
    if planned is None or quantized is None:
        return None
    tuned = quantized.distances
    tenth = max(1, len(tuned) // 10)
    return QuantizationReport(
        preset=planned.preset,
        algorithms=planned.algorithms,
        group_size=planned.group_size,
        dataset=tuple(map(without_directory, planned.text.names)),
        samples=planned.samples,
        all_layers=planned.all_layers,
        ratio=planned.ratio,
        matrices=quantized.in_four_bits,
        layer_error=quantized.layer_error,
        kl_before=sum(tuned[:tenth]) / tenth if tuned else None,
        kl_after=sum(tuned[-tenth:]) / tenth if tuned else None,
        seconds=quantized.seconds,
        put_back=quantized.put_back,
    )
