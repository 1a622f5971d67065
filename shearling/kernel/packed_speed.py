"""How fast a packed product is on this machine, beside the runtime's own: what `shearling doctor` says of it."""

from __future__ import annotations

import numpy as np

from shearling.kernel.library import pack_matrix
from shearling.kernel.loading.ir_text import FORMAT_VERSION, IrText
from shearling.kernel.loading.packed_choice import TOKEN_ROWS, ForwardStopwatch, Timing, sample
from shearling.kernel.loading.packed_operator import find_operators
from shearling.kernel.openvino_extension import machine_operators
from shearling.kernel.packed_format import Matrix, ValueType

SIZE, COPIES = 2048, 16
"""Of a usual product, and as many of it as caches do not hold."""


def measure_packed_product() -> Timing:
    """Time products of int8 weights, half of them zero, with one row, on all threads; once for a machine and a build.

    Raises:
        CompilerMissing: the operators cannot be built here.
        RuntimeError: OpenVINO cannot run them.
    """
    operators = machine_operators()
    rng = np.random.default_rng(0)
    values = rng.integers(1, 128, (SIZE, SIZE), np.int8) * rng.integers(0, 2, (SIZE, SIZE), np.int8)
    weights = pack_matrix(Matrix(values, ValueType.INT8, np.full((SIZE, 1), 0.01, np.float16), SIZE))
    text = IrText()
    for _ in range(COPIES):
        parameter = text.add("Parameter", [], {"shape": f"?,?,{SIZE}", "element_type": "f32"}, version="opset1")
        data = {
            "rows": [SIZE],
            "norm_epsilon": 0.0,
            "bias": False,
            "residual": False,
            "columns": SIZE,
            "precision": "auto",
            "format_version": FORMAT_VERSION,
        }
        text.add("SparseLinear", [*parameter, text.stored("u8", weights.shape, 0)], data)
    stopwatch = ForwardStopwatch(
        operators.core,
        text,
        weights,
        machine=operators.machine(),
        packed=operators.properties,
        stock={},
        cache=operators.cache,
    )
    return stopwatch(sample(find_operators(text, weights)), TOKEN_ROWS)
