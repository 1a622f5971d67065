// Kernels for AVX-512 with products of pairs of bf16: Zen 4, Sapphire Rapids and later. They multiply weights in bf16
// by more than two rows, and many queries of an attention (avx512_attention.cpp); all else is in avx512.cpp, which is
// compiled without these instructions.
#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels.hpp"
#include "scales.hpp"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni,avx512bf16", \
                   "popcnt,bmi,bmi2,f16c,fma")

namespace shearling {
namespace {

#include "avx512_panels.inc"
#include "avx512_tiles.inc"

struct Once16 {
    template <int rows, class Reader>
    static INLINE void run(
        Reader reader, const PanelScales&, const Activations& x, size_t tile, __m512 (&result)[rows]) {
        const uint8_t* terms = x.tile_terms(tile);
        FOR_ROWS {
            result[row] = _mm512_setzero_ps();
        }
        for_blocks(reader, x.blocks, [&](__m512i pairs, int) INLINE_LAMBDA {
            FOR_ROWS {
                const __m512i activations = broadcast(terms + 4 * row);
                result[row] = _mm512_dpbf16_ps(
                    result[row], reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(activations));
            }
            terms += 4 * rows;
        });
    }
};

struct Tiles {
    template <class Reader>
    static INLINE void multiply(
        Reader reader, const Panel& panel, const Activations& x, size_t tile, const Output& output) {
        if constexpr (Reader::of_bf16) {
            multiply_up_to<single_tile, Once16>(reader, panel, x, tile, output);
        }
    }
};

void multiply(
    const PackedMatrix& matrix, const Activations& x, size_t first, size_t last, const Output& output,
    uint8_t* scratch) {
    if (x.form != Form::once16) {
        return avx512_kernels.multiply(matrix, x, first, last, output, scratch);
    }
    multiply_tiles<Tiles>(matrix, x, first, last, output, scratch);
}

void normalise(const float* x, const float* gamma, float epsilon, size_t columns, float* y) {
    avx512_kernels.normalise(x, gamma, epsilon, columns, y);
}

void activate(Function function, const float* x, const float* factor, size_t count, float* y) {
    avx512_kernels.activate(function, x, factor, count, y);
}

}  // namespace

const KernelSet avx512_bf16_kernels = {
    "avx512_bf16",
    forms(Form::fixed16, Form::grouped8, Form::wide32, Form::once16),
    arrange_avx512,
    multiply,
    normalise,
    activate,
    &avx512_attention,
    &avx512_paired_attention};

}  // namespace shearling

#pragma GCC pop_options

#endif
