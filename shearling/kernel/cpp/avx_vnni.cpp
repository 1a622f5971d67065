// Kernels for AVX2 with the dot products of AVX-VNNI: Alder Lake, Zen 5 and later, also where AVX-512 is switched off.
#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"
#include "pairs.hpp"
#include "scales.hpp"

// The same products in the encoding of AVX-512, for tests on processors that have no other.
#pragma GCC push_options
#ifdef SHEARLING_VNNI_OF_AVX512
#pragma GCC target("avx2,fma,f16c,popcnt,bmi2,avx512vnni,avx512vl")
#define DOT_PAIRS _mm256_dpwssd_epi32
#define DOT_BYTES _mm256_dpbusd_epi32
#else
#pragma GCC target("avx2,fma,f16c,popcnt,bmi2,avxvnni")
#define DOT_PAIRS _mm256_dpwssd_avx_epi32
#define DOT_BYTES _mm256_dpbusd_avx_epi32
#endif

namespace shearling {
namespace {

inline __attribute__((always_inline)) __m256i add_products(__m256i sum, __m256i weights, __m256i activations) {
    return DOT_PAIRS(sum, weights, activations);
}

#include "avx2_panels.inc"

constexpr int grouped8_rows = 6;
constexpr int raise = 128;

INLINE __m256i begin_sum(int32_t start) { return _mm256_set1_epi32(start); }

INLINE __m256i add_bytes(__m256i sum, __m256i weights, __m256i activations) {
    return DOT_BYTES(sum, weights, activations);
}

INLINE __m256i end_sum(__m256i sum, int32_t) { return sum; }

INLINE __m256i difference(__m256i sum, __m256i less) { return _mm256_sub_epi32(sum, less); }

#include "avx2_grouped8.inc"

}  // namespace

bool has_avx_vnni() {
#ifdef SHEARLING_VNNI_OF_AVX512
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
#else
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
#endif
}

const KernelSet avx_vnni_kernels = {
    "avx_vnni",
    forms(Form::fixed16, Form::grouped8),
    arrange_integers,
    multiply,
    normalise,
    activate,
    &attention_kernels,
    nullptr,
    0,
    fixed16_rows,
    grouped8_rows,
    true};

}  // namespace shearling

#pragma GCC pop_options

#endif
