"""Which arithmetic this hardware has natively."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "bf16", "fp32"]


def resolve_precision(requested: Precision, *, device: str | None = None) -> Literal["bf16", "fp32"]:
    """Settle `auto`: bfloat16 where the device multiplies in it natively, else float32.

    Args:
        requested: as a user gives it.
        device: torch's name of the type of device that computes; None where the Trainer would: on CUDA where there is
            any.
    """
    if requested != "auto":
        return requested
    import torch

    has_cuda = torch.cuda.is_available()
    if device is None:
        device = "cuda" if has_cuda else "cpu"
    if device == "cuda":
        # That of a worker elsewhere cannot be asked.
        return "bf16" if has_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # AMX-BF16 machines report AVX512_BF16 too.
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
