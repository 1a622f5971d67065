"""Weights of an IR quantized through NNCF."""

from __future__ import annotations

import logging
from typing import Any

from export.number_formats.number_format import LOW_RANK
from export.quiet_conversion import quiet_conversion


def load_nncf() -> Any:
    """The package `nncf`, imported without its announcements."""
    with quiet_conversion():
        import nncf

        nncf.set_log_level(logging.ERROR)
    return nncf


def compress(ir: Any, **options: Any) -> Any:
    """Let NNCF quantize the weight constants.

    Args:
        ir: an `openvino.Model` with float weights; consumed.
        options: of `nncf.compress_weights`.
    """
    nncf = load_nncf()
    with quiet_conversion():
        factors = nncf.IgnoredScope(patterns=[f".*{name}.*" for name in LOW_RANK], validate=False)
        return nncf.compress_weights(ir, ignored_scope=factors, **options)
