"""Verdicts: logits of a candidate against those of its reference, held to the gate of a number format."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.verification.parity import Logits, Parity, broken_limits, compare, rounding_of, widen
from shearling.console import log
from shearling.model.head import Head
from shearling.registry.number_formats import NUMBER_FORMATS, Gate
from shearling.strict_json import Document

UNMERGED = "unmerged super-network, float32"
MERGED = "merged torch model, float32"


class ParityCheck(Document):
    """One comparison and its verdict.

    Attributes:
        candidate: what was measured, such as `openvino`.
        reference: against what.
        precision: number format of the candidate's weights and arithmetic.
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


@dataclass
class MergedReference:
    """The merged model's own logits, which every written file is held against.

    Attributes:
        model: float32, eval mode.
        blocks: the fixed inputs.
        logits: of the model on them.
        head: what the model is for.
    """

    model: Any
    blocks: Sequence[npt.NDArray[np.int64]]
    logits: Logits
    head: Head

    def check(self, candidate: str, precision: str, logits: Logits) -> ParityCheck:
        """Judge a written file.

        Args:
            candidate: what it is called in the report.
            precision: name of the number format whose gate applies.
            logits: that its runtime computes on the blocks.
        """
        parity = compare(self.logits, logits, self.blocks)
        gate, rounding = NUMBER_FORMATS.get(precision).gate, None
        if gate.max_abs is not None and parity.max_abs > gate.max_abs:
            rounding = self._rounding
            gate = widen(gate, rounding)
        return judge(candidate, MERGED, precision, parity, gate, rounding=rounding)

    @functools.cached_property
    def _rounding(self) -> float:
        """See `rounding_of`; measured where a gate would break."""
        try:
            return rounding_of(self.model, self.blocks, self.logits, head=self.head)
        except RuntimeError as error:
            # Such as a forward that mixes types of its own.
            log.print(f"the model cannot run in float64, so the gate stays as it is: {error}")
            return 0.0


def check_merge(
    unmerged: Logits, merged: Logits, blocks: Sequence[npt.NDArray[np.int64]], *, exact: bool
) -> ParityCheck:
    """Judge a merge; one that is approximate, and was accepted as such, is measured and not limited."""
    gate = NUMBER_FORMATS.get("fp32").gate if exact else Gate()
    return judge("merged", UNMERGED, "fp32", compare(unmerged, merged, blocks), gate)


def judge(
    candidate: str, reference: str, precision: str, parity: Parity, gate: Gate, *, rounding: float | None = None
) -> ParityCheck:
    """The verdict on one comparison; said on the screen as well."""
    check = ParityCheck(
        candidate=candidate,
        reference=reference,
        precision=precision,
        parity=parity,
        gate=gate,
        violations=tuple(broken_limits(gate, parity)),
        rounding=rounding,
    )
    log.print(
        f"parity {candidate} ({precision}): max |Δ| {parity.max_abs:.2e}, KL {parity.kl_mean:.2e}, "
        f"top-1 {parity.top1_agreement:.1%}: {check.verdict}"
    )
    return check
