"""Quantizes a GGUF file with llama.cpp's own quantizer: runs in the Python that has llama_cpp, and needs nothing else.

    python gguf_quantizer.py FILE.gguf Q4_0 OUTPUT.gguf [IMPORTANCE.npz]

Which tensors keep more bits than the type's name says is llama.cpp's choice, as for everyone who uses llama-quantize:
the embedding of a model that ties it to the output stays in Q6_K or Q8_0. `Q4_0-pure` leaves llama.cpp no choice, as
`llama-quantize --pure` does: smaller and faster, and less accurate. With an importance matrix, what
`llama-quantize --imatrix` does: errors count by the column they fall in.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp
import numpy as np


def quantize(source: str, kind: str, destination: str, importance: str | None = None) -> int:
    """0 where it succeeded."""
    options = llama_cpp.llama_model_quantize_default_params()
    name, _, pure = kind.partition("-")
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    options.pure = pure == "pure"
    if importance is not None:
        weights = dict(np.load(importance))
        entries = (llama_cpp.llama_model_imatrix_data * (len(weights) + 1))()
        for entry, (tensor, means) in zip(entries, weights.items(), strict=False):
            entry.name = tensor.encode()
            entry.data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = means.size
        # The last one is left empty: it has no name, and ends the list.
        options.imatrix = entries
    return int(llama_cpp.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(options)))


if __name__ == "__main__":
    sys.exit(quantize(*sys.argv[1:]))
