"""What the user asks of an export."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from export.quantization.settings import Quantization
from shearling.elastic.merge_rule import MergeMode

Verify = Literal["strict", "warn", "off"]
Kernel = Literal["stock", "sparse"]

OWN_FORMAT = "own"
"""Instead of a number format: those that the layers of the sub-network chose, or fp32."""


@dataclass(frozen=True)
class ExportRequest:
    """Options of `python -m export`.

    Attributes:
        output: where the `export` artefact will stand.
        formats: names of export formats.
        weight_format: name of the number format that weights are stored in, by the formats that take one; the others
            have the type of the frozen model's files; or `OWN_FORMAT`.
        sparse_kernels: names of the formats whose zeros are packed away, for operators of our own.
        merge: None takes the default of the sub-network.
        verify: `strict` fails on a broken gate, `warn` reports it, `off` runs no file.
    """

    output: Path
    formats: tuple[str, ...]
    weight_format: str = "fp32"
    sparse_kernels: tuple[str, ...] = ()
    quantization: Quantization = field(default_factory=Quantization)
    merge: MergeMode | None = None
    allow_approximate: bool = False
    verify: Verify = "strict"
    force: bool = False
