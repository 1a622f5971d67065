// Kernels for AVX2 with FMA: processors from 2013 on that have no AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"
#include "pairs.hpp"
#include "scales.hpp"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt,bmi2")

namespace shearling {
namespace {

inline __attribute__((always_inline)) __m256i add_products(__m256i sum, __m256i weights, __m256i activations) {
    // In assembly, since the compiler copies sums back and forth between registers otherwise.
    __m256i products;
    asm("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(weights), "x"(activations));
    return sum;
}

#include "avx2_panels.inc"

// Weights of four bits alone meet activations of eight: sums of 16 bits hold the products of a group of 32 of those.
constexpr int grouped8_rows = 4;
constexpr int raise = 8;
static_assert(activation_group * (raise + 7) / 2 * 127 < 1 << 15, "a lane of 16 bits adds up half of a group");

INLINE __m256i begin_sum(int32_t) { return _mm256_setzero_si256(); }

INLINE __m256i add_bytes(__m256i sum, __m256i weights, __m256i activations) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, activations));
}

INLINE __m256i end_sum(__m256i sum, int32_t start) {
    const __m256i sums = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    constexpr int less = 4;
    static_assert(raise << less == 128, "what was added to the weights is a part of what the sums are for");
    return _mm256_add_epi32(sums, _mm256_srai_epi32(_mm256_set1_epi32(start), less));
}

INLINE __m256i difference(__m256i sum, __m256i less) {
    return _mm256_madd_epi16(_mm256_sub_epi16(sum, less), _mm256_set1_epi16(1));
}

#include "avx2_grouped8.inc"

}  // namespace

const KernelSet avx2_kernels = {
    "avx2",
    forms(Form::fixed16),
    arrange_integers,
    multiply,
    normalise,
    activate,
    &attention_kernels,
    nullptr,
    forms(Form::grouped8),
    fixed16_rows,
    grouped8_rows,
    true};

}  // namespace shearling

#pragma GCC pop_options

#endif
