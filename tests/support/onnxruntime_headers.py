"""For tests that compile the operator of ONNX Runtime: they are skipped where its headers are not installed."""

from __future__ import annotations

import pytest

from shearling.errors import PackageMissing
from shearling.kernel.compilation import find_headers


def _fault() -> str:
    try:
        find_headers()
    except PackageMissing as error:
        return str(error)
    return ""


# They belong to a system package that is optional for users too; CONTRIBUTING says when to install it.
needs_headers = pytest.mark.skipif(bool(_fault()), reason=_fault() or "the headers are there")
