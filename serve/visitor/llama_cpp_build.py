"""What llama.cpp was compiled for: its wheels for every machine leave out what makes it fast on this one."""

from __future__ import annotations

from types import ModuleType

from serve.visitor.processor import read_processor

COMPILED_FOR, LEFT_OUT = "compiled_for", "left_out"
FLAGS = {
    "AVX": "avx",
    "AVX2": "avx2",
    "AVX_VNNI": "avx_vnni",
    "F16C": "f16c",
    "FMA": "fma",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
}
"""What llama.cpp calls a set of instructions -> what the kernel calls it."""


def build_settings(llama_cpp: ModuleType) -> dict[str, str]:
    """What the library says of itself, and what this processor has beyond that.

    Args:
        llama_cpp: a version that says nothing gives no settings.
    """
    tell = getattr(llama_cpp, "llama_print_system_info", None)
    if tell is None:
        return {}
    said = tell().decode(errors="replace")
    # Several backends follow each other, each behind its name and a colon.
    pairs = [part.partition("=")[::2] for part in said.replace(":", "|").split("|")]
    compiled_for = [name.strip() for name, value in pairs if value.strip() == "1"]
    settings = {COMPILED_FOR: " ".join(compiled_for)}
    flags = read_processor()[1]
    left_out = [name for name, flag in FLAGS.items() if flag in flags and name not in compiled_for]
    if left_out:
        settings[LEFT_OUT] = " ".join(left_out)
    return settings
