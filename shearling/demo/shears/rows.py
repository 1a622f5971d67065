"""The lines of the demo's table: one model each."""

from __future__ import annotations

from shearling.demo.documents import Spread
from shearling.strict_json import Document

PEER = "peer"
"""The role of what stands beside the models of the demo."""


class Speed(Document):
    """What the benchmark measured; see its definitions.

    Attributes:
        weight_bytes: what the runtime reads of the file: graph and weights.
        decode_ratio: time per token over that of dense + LoRA, in pairs; None for that one.
        own_operators: whether operators of this project computed it.
    """

    weight_bytes: int
    ttft_s: Spread
    tpot_s: Spread
    tokens_per_s: Spread
    decode_ratio: Spread | None
    own_operators: bool = False


class ShearsRow(Document):
    """One model of the comparison; see `Score` for the measures.

    Attributes:
        role: of `LABELS`, or `PEER`.
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

    @property
    def is_ours(self) -> bool:
        """What this project makes, or runs."""
        return self.role in ("ours", "packed") or (self.speed is not None and self.speed.own_operators)

    def is_passed_by(self, other: ShearsRow) -> bool:
        """Whether another that was timed is at least as accurate and as fast, and better in one of the two."""
        if self.speed is None or other.speed is None:
            return False
        own = (self.accuracy, self.speed.tokens_per_s.median)
        theirs = (other.accuracy, other.speed.tokens_per_s.median)
        return theirs != own and theirs[0] >= own[0] and theirs[1] >= own[1]
