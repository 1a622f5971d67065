// Kernels for AVX2 with FMA: processors from 2013 on that have no AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"
#include "scales.hpp"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt")

namespace shearling {
namespace {

inline __attribute__((always_inline)) __m256i add_products(__m256i sum, __m256i weights, __m256i activations) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(weights, activations));
}

#include "avx2_panels.inc"

void arrange(const float* source, size_t stride, const Activations& x, size_t first, size_t last) {
    for (size_t row = first; row < last; ++row) {
        arrange_fixed16(source + row * stride, x, row);
    }
}

void multiply(
    const PackedMatrix& matrix, const Activations& x, size_t first, size_t last, const Output& output,
    uint8_t* scratch) {
    multiply_panels(matrix, x, first, last, output, scratch, multiply_fixed16_panel);
}

}  // namespace

const KernelSet avx2_kernels = {
    "avx2", forms(Form::fixed16), arrange, multiply, normalise, activate, &attention_kernels, nullptr};

}  // namespace shearling

#pragma GCC pop_options

#endif
