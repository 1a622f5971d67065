"""What the user asks of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.number_format import Format, Kernel, Weights
from shearling.elastic.merge_rule import MergeMode

Verify = Literal["strict", "warn", "off"]


@dataclass(frozen=True)
class ExportRequest:
    """Options of `python -m export`.

    Attributes:
        output: where the `export` artefact will stand.
        formats: what to write; `hf` and `peft` are always float32.
        weights: number format of the OpenVINO and ONNX weights.
        kernel: `sparse` packs the zeros of the OpenVINO weights away, for operators of our own; needs bf16, int8 or
            int4.
        onnx_kernel: the same for ONNX.
        merge: None takes the default of the sub-network.
        verify: `strict` fails on a broken gate, `warn` reports it, `off` measures nothing.
    """

    output: Path
    formats: tuple[Format, ...]
    weights: Weights = "fp32"
    kernel: Kernel = "stock"
    onnx_kernel: Kernel = "stock"
    merge: MergeMode | None = None
    allow_approximate: bool = False
    verify: Verify = "strict"
    force: bool = False
