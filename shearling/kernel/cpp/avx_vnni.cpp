// Kernels for AVX2 with the dot products of AVX-VNNI: Alder Lake, Zen 5 and later, also where AVX-512 is switched off.
#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"
#include "scales.hpp"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt,avxvnni")

namespace shearling {
namespace {

inline __attribute__((always_inline)) __m256i add_products(__m256i sum, __m256i weights, __m256i activations) {
    return _mm256_dpwssd_avx_epi32(sum, weights, activations);
}

#include "avx2_panels.inc"

constexpr size_t grouped8_rows = 6;

// `terms` are [blocks][stride bytes], four bytes a row.
template <int rows>
__attribute__((noinline)) void multiply_grouped8_rows(
    const PackedMatrix& matrix, size_t panel, const uint8_t* weights, const Activations& x, size_t tile, size_t first,
    const Output& output) {
    const size_t blocks = matrix.blocks(), tile_rows = x.tile_rows(tile);
    const size_t group_blocks = matrix.groups() == 1 ? blocks : matrix.group_size / 4;
    const uint8_t* terms = x.tile_terms(tile) + 4 * first;
    const float* scales = x.tile_scales(tile) + first;
    const int32_t* sums = x.tile_sums(tile) + first;
    const __m256i bias = _mm256_set1_epi8(-128);
    Sixteen result[rows];
    FOR_ROWS {
        result[row] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    }
    for (size_t block = 0; block < blocks; scales += tile_rows, sums += tile_rows) {
        const Sixteen weight_scales = load_scales(matrix, panel, block / group_blocks);
        const size_t stop = block + x.segment_blocks < blocks ? block + x.segment_blocks : blocks;
        __m256i lower[rows], upper[rows];
        FOR_ROWS {
            lower[row] = upper[row] = _mm256_set1_epi32(sums[row]);
        }
        for (; block < stop; ++block, weights += 64, terms += 4 * tile_rows) {
            const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
            const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 32));
            const __m256i first_half = _mm256_xor_si256(low, bias), second_half = _mm256_xor_si256(high, bias);
            FOR_ROWS {
                int32_t four;
                __builtin_memcpy(&four, terms + 4 * row, 4);
                const __m256i activations = _mm256_set1_epi32(four);
                lower[row] = _mm256_dpbusd_avx_epi32(lower[row], first_half, activations);
                upper[row] = _mm256_dpbusd_avx_epi32(upper[row], second_half, activations);
            }
        }
        FOR_ROWS {
            const __m256 scale = _mm256_set1_ps(scales[row]);
            result[row].lower = _mm256_fmadd_ps(
                _mm256_mul_ps(_mm256_cvtepi32_ps(lower[row]), weight_scales.lower), scale, result[row].lower);
            result[row].upper = _mm256_fmadd_ps(
                _mm256_mul_ps(_mm256_cvtepi32_ps(upper[row]), weight_scales.upper), scale, result[row].upper);
        }
    }
    const size_t left = matrix.rows - panel * panel_rows;
    FOR_ROWS {
        write_row(
            result[row], output, tile * x.tile + first + static_cast<size_t>(row), panel * panel_rows,
            left < panel_rows ? left : panel_rows);
    }
}

void multiply_grouped8_panel(
    const PackedMatrix& matrix, size_t panel, const uint8_t* weights, const Activations& x, const Output& output) {
    for (size_t tile = 0; tile < x.tiles(); ++tile) {
        for (size_t first = 0; first < x.tile_rows(tile); first += grouped8_rows) {
            switch (x.tile_rows(tile) - first) {
                case 1: multiply_grouped8_rows<1>(matrix, panel, weights, x, tile, first, output); break;
                case 2: multiply_grouped8_rows<2>(matrix, panel, weights, x, tile, first, output); break;
                case 3: multiply_grouped8_rows<3>(matrix, panel, weights, x, tile, first, output); break;
                case 4: multiply_grouped8_rows<4>(matrix, panel, weights, x, tile, first, output); break;
                case 5: multiply_grouped8_rows<5>(matrix, panel, weights, x, tile, first, output); break;
                default: multiply_grouped8_rows<6>(matrix, panel, weights, x, tile, first, output);
            }
        }
    }
}

void arrange_grouped8(const float* source, const Activations& x, size_t row) {
    constexpr float limit = 127.0f;
    const size_t tile = row / x.tile, place = row % x.tile, tile_rows = x.tile_rows(tile);
    auto* terms = const_cast<uint8_t*>(x.tile_terms(tile)) + place * 4;
    auto* sums = const_cast<int32_t*>(x.tile_sums(tile)) + place;
    auto* scales = const_cast<float*>(x.tile_scales(tile)) + place;
    for (size_t start = 0; start < x.columns; start += activation_group, sums += tile_rows, scales += tile_rows) {
        const size_t columns = x.columns - start < activation_group ? x.columns - start : activation_group;
        const float largest = magnitude(source + start, columns);
        const __m256 inverse = _mm256_set1_ps(inverse_scale(largest, limit));
        *scales = largest * (1.0f / limit);
        int32_t sum = 0;
        for (size_t column = 0; column < columns; column += 8) {
            const __m256 value = load_some(source + start + column, columns - column);
            const __m256i fixed = _mm256_cvtps_epi32(_mm256_mul_ps(value, inverse));
            const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(fixed), _mm256_extracti128_si256(fixed, 1));
            const __m128i bytes = _mm_packs_epi16(words, words);
            int32_t pieces[2];
            _mm_storel_epi64(reinterpret_cast<__m128i*>(pieces), bytes);
            __builtin_memcpy(terms, pieces, 4);
            terms += 4 * tile_rows;
            if (column + 4 < columns) {
                __builtin_memcpy(terms, pieces + 1, 4);
                terms += 4 * tile_rows;
            }
            const __m128i pairs = _mm_madd_epi16(words, _mm_set1_epi16(1));
            const __m128i halves = _mm_add_epi32(pairs, _mm_unpackhi_epi64(pairs, pairs));
            sum += _mm_cvtsi128_si32(halves) + _mm_extract_epi32(halves, 1);
        }
        *sums = -128 * sum;
    }
}

void arrange(const float* source, size_t stride, const Activations& x, size_t first, size_t last) {
    for (size_t row = first; row < last; ++row) {
        if (x.form == Form::grouped8) {
            arrange_grouped8(source + row * stride, x, row);
        } else {
            arrange_fixed16(source + row * stride, x, row);
        }
    }
}

void multiply(
    const PackedMatrix& matrix, const Activations& x, size_t first, size_t last, const Output& output,
    uint8_t* scratch) {
    const bool grouped = x.form == Form::grouped8;
    multiply_panels(
        matrix, x, first, last, output, scratch, grouped ? multiply_grouped8_panel : multiply_fixed16_panel);
}

}  // namespace

bool has_avx_vnni() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
}

const KernelSet avx_vnni_kernels = {
    "avx_vnni",
    forms(Form::fixed16, Form::grouped8),
    arrange,
    multiply,
    normalise,
    activate,
    &attention_kernels,
    nullptr};

}  // namespace shearling

#pragma GCC pop_options

#endif
