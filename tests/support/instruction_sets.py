"""The instruction sets that the kernels are compiled for, and which of them this processor has."""

from __future__ import annotations

import functools

import numpy as np

from shearling.errors import ArtefactCorrupt
from shearling.kernel.library import multiply, pack_matrix
from shearling.kernel.packed_format import ValueType
from tests.support.matrices import random_matrix

KERNELS = ("amx", "avx512_bf16", "avx512", "avx_vnni", "avx2", "portable")
"""Best first."""


@functools.cache
def available(kernels: str) -> bool:
    try:
        multiply(pack_matrix(random_matrix(ValueType.INT8, 1, 1)), np.ones((1, 1), np.float32), kernels=kernels)
    except ArtefactCorrupt:
        return False
    return True
