"""Verdicts: logits of a candidate against those of its reference, held to the gate of a number format."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.verification.parity import (
    ROUNDING_ALLOWANCE,
    Logits,
    Parity,
    broken_limits,
    compare,
    rounding_of,
    torch_logits,
    widen,
)
from export.verification.reading import MeasuredLogits, Reading, read_fixed
from shearling.console import log
from shearling.model.head import Head
from shearling.registry.number_formats import NUMBER_FORMATS, Gate, NumberFormat
from shearling.strict_json import Document

if TYPE_CHECKING:
    from torch import nn

UNMERGED = "unmerged super-network, float32"
MERGED = "merged torch model, float32"


class ParityCheck(Document):
    """One comparison and its verdict.

    Attributes:
        candidate: what was measured, such as `openvino`.
        reference: against what.
        precision: number format of the candidate's weights and arithmetic.
        text: what both read; see `export.verification.reading`.
        gate: that was applied.
        violations: limits that it broke; empty is a pass.
        rounding: of the reference in float32, where the gate was widened for it; see
            `export.verification.parity.widen`.
        torch_kl: mean KL of the reference in torch at the candidate's arithmetic, where the runtime chose it and not
            the file; nothing but NaN and infinity is rejected for it.
    """

    candidate: str
    reference: str
    precision: str
    text: str
    parity: Parity
    gate: Gate
    violations: tuple[str, ...]
    rounding: float | None = None
    torch_kl: float | None = None

    @property
    def rejects(self) -> bool:
        """Whether the file is refused for it."""
        return bool(self.violations) and (self.torch_kl is None or not self.parity.finite)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.torch_kl is not None:
            beside = f"torch at {self.precision} has KL {self.torch_kl:.1e}"
            told = "" if self.rejects else ": reported only"
            return f"{'; '.join(self.violations)}, {beside}{told}" if self.violations else f"ok, {beside}"
        if self.violations:
            return "; ".join(self.violations)
        if self.gate == Gate():
            return "measured, without a limit"
        return (
            "ok"
            if self.rounding is None
            else f"ok: limit {self.gate.max_abs:.1e}, since float32 rounds the reference by {self.rounding:.1e}"
        )


@dataclass
class MergedReference:
    """The merged model's own logits, which every written file is held against.

    Attributes:
        model: eval mode.
        head: what the model is for.
        blocks: the fixed ones.
        held_back: text that nothing was trained on; None where there is none, or no format rounds to integers.
    """

    model: Any
    head: Head
    blocks: Sequence[npt.NDArray[np.int64]]
    held_back: Reading | None = None

    @functools.cached_property
    def fixed(self) -> Reading:
        """The fixed blocks, read by the model once they are asked for."""
        return read_fixed(self.model, self.blocks, head=self.head)

    def reading(self, number_format: NumberFormat) -> Reading:
        """What a file with weights of this format is judged on."""
        return self.held_back if number_format.integers and self.held_back is not None else self.fixed

    def check(self, measured: MeasuredLogits, reading: Reading) -> ParityCheck:
        """Judge a written file.

        Args:
            measured: what its runtime computes.
            reading: of these blocks.
        """
        parity = compare(reading.logits, measured.logits, reading.blocks, random_blocks=reading.random_blocks)
        gate, rounding = self.gate(measured.precision, parity)
        torch_kl = None
        # Where torch itself overflows in that arithmetic, there is nothing to excuse the runtime with.
        if measured.chosen_by_runtime and math.isfinite(self._torch_kl):
            torch_kl = self._torch_kl
            # Both round to bfloat16, in other orders.
            gate = gate.model_copy(update={"kl_mean": max(gate.kl_mean or 0.0, ROUNDING_ALLOWANCE * torch_kl)})
        return judge(
            measured.candidate,
            MERGED,
            measured.precision,
            parity,
            gate,
            text=reading.name,
            rounding=rounding,
            torch_kl=torch_kl,
        )

    def gate(self, precision: str, parity: Parity) -> tuple[Gate, float | None]:
        """The gate of a number format, and by how much float32 rounds the model where it was widened for it."""
        gate = NUMBER_FORMATS.get(precision).gate
        if gate.max_abs is None or not parity.finite or parity.max_abs <= gate.max_abs:
            return gate, None
        return widen(gate, self._rounding), self._rounding

    @functools.cached_property
    def _rounding(self) -> float:
        """See `rounding_of`; measured where a gate would break."""
        try:
            return rounding_of(self.model, self.fixed.blocks, self.fixed.logits, head=self.head)
        except RuntimeError as error:
            # Such as a forward that mixes types of its own.
            log.print(f"the model cannot run in float64, so the gate stays as it is: {error}")
            return 0.0

    @functools.cached_property
    def _torch_kl(self) -> float:
        """Mean KL of the model in bfloat16 autocast on the fixed blocks; infinite where it cannot run in that."""
        fixed = self.fixed
        try:
            halved = torch_logits(self.model, fixed.blocks, head=self.head, arithmetic="bfloat16")
        except RuntimeError as error:
            # Such as a mask of numbers that only float32 holds.
            log.print(f"the model cannot run in bfloat16, which therefore excuses no runtime: {error}")
            return math.inf
        return compare(fixed.logits, halved, fixed.blocks, random_blocks=fixed.random_blocks).kl_mean


def weights_precision(model: nn.Module) -> str:
    """Name of the number format that a model's matrices have: of several that which rounds most, as an embedding may
    be kept in float32 beside layers in bfloat16.
    """
    found = {str(parameter.dtype) for parameter in model.parameters() if parameter.ndim == 2}
    coarsest_first = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}
    return next((name for dtype, name in coarsest_first.items() if dtype in found), "fp32")


def check_merge(unmerged: Logits, merged: MergedReference, *, exact: bool, precision: str) -> ParityCheck:
    """Judge a merge; one that is approximate, and was accepted as such, is measured and not limited.

    Args:
        unmerged: logits of the super-network on the fixed blocks.
        merged: what it became.
        exact: whether the merge keeps what was trained.
        precision: number format that merged weights were rounded to.
    """
    fixed = merged.fixed
    parity = compare(unmerged, fixed.logits, fixed.blocks)
    gate, rounding = merged.gate(precision, parity) if exact else (Gate(), None)
    return judge("merged", UNMERGED, precision, parity, gate, text=fixed.name, rounding=rounding)


def judge(
    candidate: str,
    reference: str,
    precision: str,
    parity: Parity,
    gate: Gate,
    *,
    text: str,
    rounding: float | None = None,
    torch_kl: float | None = None,
) -> ParityCheck:
    """The verdict on one comparison; said on the screen as well. See `ParityCheck`."""
    check = ParityCheck(
        candidate=candidate,
        reference=reference,
        precision=precision,
        text=text,
        parity=parity,
        gate=gate,
        violations=tuple(broken_limits(gate, parity)),
        rounding=rounding,
        torch_kl=torch_kl,
    )
    log.print(
        f"parity {candidate} ({precision}), {parity.positions} positions of {text}: max |Δ| {parity.max_abs:.2e}, "
        f"KL {parity.kl_mean:.2e}, top-1 {parity.top1_agreement:.1%}: {check.verdict}"
    )
    return check
