"""Which arithmetic this hardware has natively."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "bf16", "fp32"]


def resolve_precision(requested: Precision) -> Literal["bf16", "fp32"]:
    """Settle `auto`: bfloat16 where the device multiplies in it natively, else float32."""
    if requested != "auto":
        return requested
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # AMX-BF16 machines report AVX512_BF16 too.
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
