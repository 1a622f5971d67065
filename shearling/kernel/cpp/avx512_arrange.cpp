// Activations for the kernels of avx512.cpp.
#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels.hpp"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")

namespace shearling {
namespace {

#define INLINE inline __attribute__((always_inline))

struct Place {
    size_t tile;
    size_t row;
    size_t rows;
};

INLINE Place place_of(const Activations& x, size_t row) {
    const size_t tile = row / x.tile;
    return {tile, row % x.tile, x.tile_rows(tile)};
}

INLINE __mmask16 lanes(size_t count) { return count >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << count) - 1); }

// Largest magnitude; NaN if a value is not finite.
INLINE float magnitude(const float* x, size_t columns) {
    __m512 largest = _mm512_setzero_ps();
    __mmask16 strange = 0;
    for (size_t column = 0; column < columns; column += 16) {
        const __m512 value = _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(columns - column), x + column));
        largest = _mm512_max_ps(largest, value);
        strange |= _mm512_cmp_ps_mask(value, _mm512_set1_ps(3.4028234e38f), _CMP_NLE_UQ);
    }
    return strange != 0 ? __builtin_nanf("") : _mm512_reduce_max_ps(largest);
}

// Factor that brings `largest` to `limit`; 0 where there is nothing to bring.
INLINE float inverse_scale(float largest, float limit) {
    return largest >= limit * 1.1754944e-38f ? limit / largest : 0.0f;
}

// All lanes, or none where `largest` is NaN: such activations count as zeros, since their results are NaN by their
// scale, and sums of what they would be converted to could overflow.
INLINE __mmask16 lanes_if_finite(float largest) { return largest == largest ? 0xFFFF : 0; }

template <int bytes>
INLINE void scatter_blocks(const uint8_t* pieces, uint8_t* target, size_t stride, size_t count) {
    for (size_t piece = 0; piece < count; ++piece) {
        __builtin_memcpy(target + piece * stride, pieces + piece * bytes, bytes);
    }
}

void arrange_fixed16(const float* source, const Activations& x, size_t row) {
    const Place place = place_of(x, row);
    const float largest = magnitude(source, x.columns);
    const float inverse = inverse_scale(largest, 32512.0f);
    const __mmask16 finite = lanes_if_finite(largest);
    x.scales[row] = largest * (1.0f / 32512.0f);
    auto* terms = const_cast<uint8_t*>(x.tile_terms(place.tile)) + place.row * 8;
    auto* sums = const_cast<int32_t*>(x.tile_sums(place.tile)) + place.row * 2;
    const size_t stride = place.rows * 8;
    const size_t segment_columns = x.segment_blocks * 4;
    for (size_t start = 0; start < x.columns; start += segment_columns, sums += place.rows * 2) {
        const size_t stop = start + segment_columns < x.columns ? start + segment_columns : x.columns;
        __m512i high_sum = _mm512_setzero_si512(), low_sum = _mm512_setzero_si512();
        for (size_t column = start; column < stop; column += 16) {
            const size_t count = stop - column < 16 ? stop - column : 16;
            const __m512 value = _mm512_maskz_loadu_ps(lanes(count), source + column);
            const __m512i fixed = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(finite, value, _mm512_set1_ps(inverse)));
            const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(fixed, 24), 24);
            const __m512i high = _mm512_srai_epi32(_mm512_sub_epi32(fixed, low), 8);
            high_sum = _mm512_add_epi32(high_sum, high);
            low_sum = _mm512_add_epi32(low_sum, low);
            const __m128i high_bytes = _mm512_cvtepi32_epi8(high), low_bytes = _mm512_cvtepi32_epi8(low);
            alignas(16) uint8_t pieces[32];
            _mm_store_si128(reinterpret_cast<__m128i*>(pieces), _mm_unpacklo_epi32(high_bytes, low_bytes));
            _mm_store_si128(reinterpret_cast<__m128i*>(pieces + 16), _mm_unpackhi_epi32(high_bytes, low_bytes));
            scatter_blocks<8>(pieces, terms + column / 4 * stride, stride, (count + 3) / 4);
        }
        sums[0] = -128 * _mm512_reduce_add_epi32(high_sum);
        sums[1] = -128 * _mm512_reduce_add_epi32(low_sum);
    }
}

void arrange_grouped8(const float* source, const Activations& x, size_t row) {
    const Place place = place_of(x, row);
    auto* terms = const_cast<uint8_t*>(x.tile_terms(place.tile)) + place.row * 4;
    auto* sums = const_cast<int32_t*>(x.tile_sums(place.tile)) + place.row;
    auto* scales = const_cast<float*>(x.tile_scales(place.tile)) + place.row;
    const size_t stride = place.rows * 4;
    for (size_t start = 0; start < x.columns; start += activation_group, sums += place.rows, scales += place.rows) {
        const size_t count = x.columns - start < activation_group ? x.columns - start : activation_group;
        const float largest = magnitude(source + start, count);
        const __m512 inverse = _mm512_set1_ps(inverse_scale(largest, 127.0f));
        const __mmask16 finite = lanes_if_finite(largest);
        __m512i sum = _mm512_setzero_si512();
        alignas(16) uint8_t pieces[32];
        for (size_t half = 0; half < 2; ++half) {
            const __mmask16 mask = count > half * 16 ? lanes(count - half * 16) : 0;
            const __m512 value = _mm512_maskz_loadu_ps(mask, source + start + half * 16);
            const __m512i fixed = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(finite, value, inverse));
            sum = _mm512_add_epi32(sum, fixed);
            _mm_store_si128(reinterpret_cast<__m128i*>(pieces + half * 16), _mm512_cvtepi32_epi8(fixed));
        }
        scatter_blocks<4>(pieces, terms + start / 4 * stride, stride, (count + 3) / 4);
        *sums = -128 * _mm512_reduce_add_epi32(sum);
        *scales = largest * (1.0f / 127.0f);
    }
}

void arrange_wide32(const float* source, const Activations& x, size_t row) {
    const Place place = place_of(x, row);
    auto* terms = const_cast<uint8_t*>(x.tile_terms(place.tile)) + place.row * 8;
    const size_t stride = place.rows * 8;
    for (size_t column = 0; column < x.columns; column += 2) {
        const float pair[2] = {source[column], column + 1 < x.columns ? source[column + 1] : 0.0f};
        __builtin_memcpy(terms + column / 2 * stride, pair, sizeof pair);
    }
}

// f32 -> bf16, to nearest even; NaN stays NaN.
INLINE __m256i round_to_bf16(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
    const __mmask16 strange = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, strange, _mm512_set1_epi32(0x7FC0)));
}

void arrange_once16(const float* source, const Activations& x, size_t row) {
    const Place place = place_of(x, row);
    auto* terms = const_cast<uint8_t*>(x.tile_terms(place.tile)) + place.row * 4;
    const size_t stride = place.rows * 4;
    for (size_t column = 0; column < x.columns; column += 16) {
        const size_t count = x.columns - column < 16 ? x.columns - column : 16;
        alignas(32) uint8_t pieces[32];
        _mm256_store_si256(
            reinterpret_cast<__m256i*>(pieces), round_to_bf16(_mm512_maskz_loadu_ps(lanes(count), source + column)));
        scatter_blocks<4>(pieces, terms + column / 2 * stride, stride, (count + 1) / 2);
    }
}

// 16 rows of 64 bytes for each of two registers.
constexpr size_t row_bytes = 64;
constexpr size_t register_bytes = 1024;

void arrange_tiled_fixed16(const float* source, const Activations& x, size_t row) {
    const Place place = place_of(x, row);
    auto* target = const_cast<uint8_t*>(x.tile_terms(place.tile)) + place.row * row_bytes;
    auto* scales = const_cast<float*>(x.tile_scales(place.tile)) + place.row;
    const size_t segment_columns = x.segment_blocks * 64;
    for (size_t start = 0; start < x.columns; start += segment_columns, scales += x.tile) {
        const size_t stop = start + segment_columns < x.columns ? start + segment_columns : x.columns;
        const float largest = magnitude(source + start, stop - start);
        const __m512 inverse = _mm512_set1_ps(inverse_scale(largest, 32512.0f));
        *scales = largest * (1.0f / 32512.0f);
        for (size_t column = start; column < stop; column += 64, target += 2 * register_bytes) {
            for (size_t quarter = 0; quarter < 4; ++quarter) {
                const size_t first = column + quarter * 16;
                const __m512 value = _mm512_maskz_loadu_ps(first < stop ? lanes(stop - first) : 0, source + first);
                const __m512i fixed = _mm512_cvtps_epi32(_mm512_mul_ps(value, inverse));
                const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(fixed, 24), 24);
                const __m512i high = _mm512_srai_epi32(_mm512_sub_epi32(fixed, low), 8);
                _mm_store_si128(reinterpret_cast<__m128i*>(target + quarter * 16), _mm512_cvtepi32_epi8(high));
                _mm_store_si128(
                    reinterpret_cast<__m128i*>(target + register_bytes + quarter * 16), _mm512_cvtepi32_epi8(low));
            }
        }
    }
}

void arrange_tiled_once16(const float* source, const Activations& x, size_t row) {
    const Place place = place_of(x, row);
    auto* target =
        const_cast<uint8_t*>(x.tile_terms(place.tile)) + place.row / 16 * register_bytes + place.row % 16 * row_bytes;
    for (size_t column = 0; column < x.columns; column += 32, target += 2 * register_bytes) {
        for (size_t half = 0; half < 2; ++half) {
            const size_t first = column + half * 16;
            const __m512 value =
                _mm512_maskz_loadu_ps(first < x.columns ? lanes(x.columns - first) : 0, source + first);
            _mm256_store_si256(reinterpret_cast<__m256i*>(target + half * 32), round_to_bf16(value));
        }
    }
}

}  // namespace

void arrange_avx512(const float* source, size_t stride, const Activations& x, size_t first, size_t last) {
    for (size_t row = first; row < last; ++row) {
        switch (x.form) {
            case Form::fixed16: arrange_fixed16(source + row * stride, x, row); break;
            case Form::grouped8: arrange_grouped8(source + row * stride, x, row); break;
            case Form::wide32: arrange_wide32(source + row * stride, x, row); break;
            case Form::once16: arrange_once16(source + row * stride, x, row); break;
            case Form::tiled_fixed16: arrange_tiled_fixed16(source + row * stride, x, row); break;
            case Form::tiled_once16: arrange_tiled_once16(source + row * stride, x, row); break;
            case Form::plain32: break;
        }
    }
}

}  // namespace shearling

#pragma GCC pop_options

#endif
