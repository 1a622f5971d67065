"""What the user asks of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.weights import Format, Weights
from shearling.errors import UsageError
from shearling.merge_rule import MergeMode

Verify = Literal["strict", "warn", "off"]

ONNX_WEIGHTS: tuple[Weights, ...] = ("fp32", "fp16", "int8", "int4")


@dataclass(frozen=True)
class ExportRequest:
    """Options of `python -m export`.

    Attributes:
        output: where the `export` artefact will stand.
        formats: what to write; `hf` and `peft` are always float32.
        weights: number format of the OpenVINO and ONNX weights.
        merge: None takes the default of the sub-network.
        verify: `strict` fails on a broken gate, `warn` reports it, `off` measures nothing.
    """

    output: Path
    formats: tuple[Format, ...]
    weights: Weights = "fp32"
    merge: MergeMode | None = None
    allow_approximate: bool = False
    verify: Verify = "strict"
    force: bool = False

    def check(self) -> None:
        """Refuse combinations that no runtime could execute.

        Raises:
            UsageError: bf16 for ONNX, which ONNX Runtime has no CPU kernels for.
        """
        if "onnx" in self.formats and self.weights not in ONNX_WEIGHTS:
            raise UsageError(
                f"ONNX Runtime has no CPU kernels for {self.weights} weights",
                where="--weights",
                remedy=f"Use one of {', '.join(ONNX_WEIGHTS)}, or --formats openvino",
            )
