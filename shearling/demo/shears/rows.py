"""The lines of the demo's table: one model each."""

from __future__ import annotations

from shearling.demo.documents import Spread
from shearling.strict_json import Document


class Speed(Document):
    """What the benchmark measured; see its definitions.

    Attributes:
        weight_bytes: the OpenVINO graph and weights.
        decode_ratio: time per token over that of dense + LoRA, in pairs; None for that one.
    """

    weight_bytes: int
    ttft_s: Spread
    tpot_s: Spread
    tokens_per_s: Spread
    decode_ratio: Spread | None


class ShearsRow(Document):
    """One model of the comparison; see `Score` for the measures.

    Attributes:
        sparsity: None where the file does not say it, as one that was never pruned.
        speed: None where the model was not timed.
    """

    role: str
    label: str
    accuracy: float
    interval: tuple[float, float]
    bits_per_byte: float | None
    sparsity: float | None
    speed: Speed | None
