"""Quantizes a GGUF file with llama.cpp's own quantizer: runs in the Python that has llama_cpp, and needs nothing else.

    python gguf_quantizer.py FILE.gguf Q4_0 OUTPUT.gguf

Which tensors keep more bits than the type's name says is llama.cpp's choice, as for everyone who uses llama-quantize:
the embedding of a model that ties it to the output stays in Q6_K or Q8_0. `Q4_0-pure` leaves llama.cpp no choice, as
`llama-quantize --pure` does: smaller and faster, and less accurate.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp


def quantize(source: str, kind: str, destination: str) -> int:
    """0 where it succeeded."""
    options = llama_cpp.llama_model_quantize_default_params()
    name, _, pure = kind.partition("-")
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    options.pure = pure == "pure"
    return int(llama_cpp.llama_model_quantize(source.encode(), destination.encode(), ctypes.byref(options)))


if __name__ == "__main__":
    sys.exit(quantize(*sys.argv[1:]))
