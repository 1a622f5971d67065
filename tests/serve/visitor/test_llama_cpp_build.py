"""A peer that was compiled for every machine is a weak one, and a bench says so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import serve.visitor.llama_cpp_build
from serve.visitor.llama_cpp_build import build_settings

ZEN_5 = ("avx", "avx2", "avx512_bf16", "avx512_vnni", "avx512f", "f16c", "fma", "sse3")


@pytest.mark.parametrize(
    ("said", "settings"),
    [
        (
            b"CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | AVX512 = 1 | AVX512_VNNI = 1 | "
            b"AVX512_BF16 = 1 | OPENMP = 1 | ",
            {"compiled_for": "SSE3 AVX AVX2 F16C FMA AVX512 AVX512_VNNI AVX512_BF16 OPENMP"},
        ),
        (
            b"Metal : EMBED_LIBRARY = 1 | CPU : AVX = 1 | AVX2 = 1 | AVX512 = 0 | F16C = 1 | FMA = 1 | ",
            {
                "compiled_for": "EMBED_LIBRARY AVX AVX2 F16C FMA",
                "left_out": "AVX512 AVX512_VNNI AVX512_BF16",
            },
        ),
    ],
)
def test_what_the_processor_has_beyond_the_build_is_left_out(monkeypatch, said, settings):
    monkeypatch.setattr(serve.visitor.llama_cpp_build, "read_processor", lambda: ("a processor", ZEN_5))
    assert build_settings(SimpleNamespace(llama_print_system_info=lambda: said)) == settings


def test_a_version_that_says_nothing_is_measured_all_the_same():
    assert build_settings(SimpleNamespace()) == {}
