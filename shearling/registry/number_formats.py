"""The number formats that exported weights may have.

How an export format stores one is named for each export format; a number format is to be had exactly where an
implementation is named. What an implementation is called with stands in `export.number_formats.number_format`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shearling.errors import UsageError
from shearling.registry.registry import Entry, Registry, load_implementation
from shearling.strict_json import Document


class Gate(Document):
    """What the logits of an exported file may differ by from those of the merged model; None is not limited.

    Attributes:
        max_abs: largest absolute difference of a logit.
        kl_mean: mean over positions of KL(merged || exported), nats.
        top1_agreement: least share of positions with the same most likely token.
    """

    max_abs: float | None = None
    kl_mean: float | None = None
    top1_agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class NumberFormat(Entry):
    """One number format.

    Attributes:
        implementation: export format -> `package.module:attribute`, or the function itself.
        bits: of one stored weight, without its share of a scale.
        gate: for weights of this format, or arithmetic of it, whichever is coarser.
        packable: whether the sparse kernels read it.
        computed_as: the format whose gate applies where a runtime chooses the precision of its arithmetic; None where
            the weights are coarser than any arithmetic.
    """

    implementation: Mapping[str, Any]
    bits: int
    gate: Gate
    packable: bool = False
    computed_as: str | None = None

    @property
    def integers(self) -> bool:
        """Whether weights are coarser than any arithmetic: what they lose is seen in what the model does."""
        return self.computed_as is None

    def load_for(self, export_format: str) -> Any:
        """What stores this format in an export format, imported.

        Raises:
            UsageError: it cannot be stored there.
        """
        if export_format not in self.implementation:
            raise UsageError(
                f"{export_format} does not store {self.name}",
                where="--weight-format",
                remedy=f"{self.name} is stored by: {', '.join(self.implementation)}",
            )
        return load_implementation(self.implementation[export_format])


NUMBER_FORMATS = Registry(
    noun="number format",
    group="shearling.number_formats",
    entry_type=NumberFormat,
    entries=(
        NumberFormat(
            name="fp32",
            summary="float32, as trained",
            bits=32,
            gate=Gate(max_abs=1e-3, kl_mean=1e-6),
            computed_as="bf16",
            implementation={
                "openvino": "export.number_formats.float32:store_openvino",
                "onnx": "export.number_formats.float32:store_onnx",
                "onnx-genai": "export.number_formats.float32:round_products",
            },
        ),
        NumberFormat(
            name="fp16",
            summary="float16, half the bytes",
            bits=16,
            gate=Gate(kl_mean=1e-3),
            computed_as="bf16",
            implementation={
                "openvino": "export.number_formats.float16:store_openvino",
                "onnx": "export.number_formats.float16:store_onnx",
                "onnx-genai": "export.number_formats.float16:round_products",
            },
        ),
        NumberFormat(
            name="bf16",
            summary="bfloat16, half the bytes, and float32's range",
            bits=16,
            gate=Gate(kl_mean=1e-2),
            packable=True,
            computed_as="bf16",
            implementation={
                "openvino": "export.number_formats.bfloat16:store_openvino",
                "onnx": "export.number_formats.bfloat16:store_onnx",
            },
        ),
        NumberFormat(
            name="int8",
            summary="integers of 8 bits with a scale for each row or block",
            bits=8,
            gate=Gate(kl_mean=0.05, top1_agreement=0.9),
            packable=True,
            implementation={
                "openvino": "export.number_formats.int8:store_openvino",
                "onnx": "export.number_formats.int8:store_onnx",
                "onnx-genai": "export.number_formats.int8:round_products",
            },
        ),
        NumberFormat(
            name="int4",
            summary="integers of 4 bits with a scale for each group",
            bits=4,
            gate=Gate(kl_mean=0.2, top1_agreement=0.75),
            packable=True,
            implementation={
                "openvino": "export.number_formats.int4:store_openvino",
                "onnx": "export.number_formats.int4:store_onnx",
                "onnx-genai": "export.number_formats.int4:round_products",
            },
        ),
    ),
)
