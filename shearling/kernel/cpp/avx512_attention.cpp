// Attention in pairs of bf16, for AVX-512 with bf16.
#if defined(__x86_64__)

#include <immintrin.h>

#include <type_traits>

#include "kernels.hpp"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,f16c,fma")

namespace shearling {
namespace {

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

// Sums that fit the registers, beside the vectors that they are made of.
constexpr size_t most_rows = 6;
constexpr size_t most_lanes = 4;

#include "avx512_numbers.inc"

// Pairs of a number of `low` and the one of `high` in its place.
INLINE void store_pairs(__m512 low, __m512 high, uint32_t* pairs) {
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
        16, 0);
    const __m512i one_after_the_other = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_storeu_si512(pairs, _mm512_permutexvar_epi16(order, one_after_the_other));
}

struct HalfNumbers {
    static constexpr CacheType type = CacheType::f16;
    static INLINE __m512 load(const uint8_t* block, size_t place) {
        return load_halves(reinterpret_cast<const uint16_t*>(block) + place);
    }
    static INLINE __m512 scales(const uint8_t*, size_t, size_t) { return _mm512_set1_ps(1.0f); }
};

struct UpperHalves {
    static constexpr CacheType type = CacheType::bf16;
    static INLINE __m512 load(const uint8_t* block, size_t place) {
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 2 * place));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
    static INLINE __m512 scales(const uint8_t*, size_t, size_t) { return _mm512_set1_ps(1.0f); }
};

struct ByteNumbers {
    static constexpr CacheType type = CacheType::i8;
    static INLINE __m512 load(const uint8_t* block, size_t place) {
        return load_bytes(reinterpret_cast<const int8_t*>(block) + place);
    }
    static INLINE __m512 scales(const uint8_t* block, size_t width, size_t group) {
        return load_halves(block_scales(block, width, group));
    }
};

template <class Numbers>
void pair_keys(const uint8_t* keys, size_t width, size_t blocks, uint32_t* pairs) {
    for (size_t block = 0; block < blocks; ++block, keys += block_bytes(Numbers::type, width)) {
        for (size_t column = 0; column < width; column += 2, pairs += 16) {
            const __m512 scales = Numbers::scales(keys, width, column / scale_columns);
            store_pairs(
                _mm512_mul_ps(Numbers::load(keys, column * block_positions), scales),
                _mm512_mul_ps(Numbers::load(keys, (column + 1) * block_positions), scales), pairs);
        }
    }
}

template <class Numbers>
void pair_values(const uint8_t* values, size_t width, size_t positions, uint32_t* pairs) {
    for (size_t start = 0; start < positions; start += block_positions) {
        const size_t count = positions - start < block_positions ? positions - start : block_positions;
        for (size_t column = 0; column < width; column += 16) {
            alignas(64) float scales[block_positions];
            _mm512_store_ps(scales, Numbers::scales(values, width, column / scale_columns));
            for (size_t place = 0; place < count; place += 2) {
                const auto scaled = [&](size_t position) INLINE_LAMBDA {
                    // The last of an odd number has nothing beside it.
                    return position == count ? _mm512_setzero_ps()
                                             : _mm512_mul_ps(
                                                   Numbers::load(values, position * width + column),
                                                   _mm512_set1_ps(scales[position]));
                };
                store_pairs(scaled(place), scaled(place + 1), pairs + (start + place) / 2 * width + column);
            }
        }
        values += block_bytes(Numbers::type, width);
    }
}

void pair_numbers(const float* numbers, size_t count, uint32_t* pairs) {
    for (size_t start = 0; start < count; start += 32) {
        const __m512 low = _mm512_loadu_ps(numbers + start), high = _mm512_loadu_ps(numbers + start + 16);
        _mm512_storeu_si512(pairs + start / 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
}

// In assembly because the compiler otherwise copies every sum.
INLINE void add_products(__m512& sum, __m512i a, __m512i b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// sums[row][lane] += sum over steps of a[row * stride + step] * b[step * step_stride + lane * lane_stride], in pairs
template <size_t rows, size_t lanes>
INLINE void multiply_pairs(
    const uint32_t* a, size_t stride, const uint32_t* b, size_t step_stride, size_t lane_stride, size_t steps,
    __m512 (&sums)[rows][lanes]) {
    for (size_t step = 0; step < steps; ++step, b += step_stride) {
        __m512i vectors[lanes];
#pragma GCC unroll 4
        for (size_t lane = 0; lane < lanes; ++lane) {
            vectors[lane] = _mm512_loadu_si512(b + lane * lane_stride);
        }
#pragma GCC unroll 8
        for (size_t row = 0; row < rows; ++row) {
            const __m512i pair = _mm512_set1_epi32(static_cast<int32_t>(a[row * stride + step]));
#pragma GCC unroll 4
            for (size_t lane = 0; lane < lanes; ++lane) {
                add_products(sums[row][lane], vectors[lane], pair);
            }
        }
    }
}

template <size_t rows, size_t lanes>
void score_blocks(const uint32_t* queries, size_t width, const uint32_t* keys, float* scores, size_t stride) {
    __m512 sums[rows][lanes] = {};
    multiply_pairs<rows, lanes>(queries, width / 2, keys, 16, width / 2 * 16, width / 2, sums);
#pragma GCC unroll 8
    for (size_t row = 0; row < rows; ++row) {
#pragma GCC unroll 4
        for (size_t lane = 0; lane < lanes; ++lane) {
            _mm512_storeu_ps(scores + row * stride + lane * 16, sums[row][lane]);
        }
    }
}

template <size_t rows, size_t lanes>
void gather_columns(
    const uint32_t* weights, size_t stride, const uint32_t* values, size_t positions, size_t width, float* sums) {
    __m512 totals[rows][lanes];
#pragma GCC unroll 8
    for (size_t row = 0; row < rows; ++row) {
#pragma GCC unroll 4
        for (size_t lane = 0; lane < lanes; ++lane) {
            totals[row][lane] = _mm512_loadu_ps(sums + row * width + lane * 16);
        }
    }
    multiply_pairs<rows, lanes>(weights, stride, values, width, 16, (positions + 1) / 2, totals);
#pragma GCC unroll 8
    for (size_t row = 0; row < rows; ++row) {
#pragma GCC unroll 4
        for (size_t lane = 0; lane < lanes; ++lane) {
            _mm512_storeu_ps(sums + row * width + lane * 16, totals[row][lane]);
        }
    }
}

// Calls `body(lanes, place)` for all of `count` vectors, as many at a time as there are registers for.
template <class Body>
INLINE void for_lanes(size_t count, const Body& body) {
    size_t place = 0;
    for (; place + most_lanes <= count; place += most_lanes) {
        body(std::integral_constant<size_t, most_lanes>{}, place);
    }
    for (; place < count; ++place) {
        body(std::integral_constant<size_t, 1>{}, place);
    }
}

// Calls `body(rows, row)` for all of `count` rows, as many at a time as there are registers for.
template <class Body>
INLINE void for_row_tiles(size_t count, const Body& body) {
    size_t row = 0;
    for (; row + most_rows <= count; row += most_rows) {
        body(std::integral_constant<size_t, most_rows>{}, row);
    }
    for (; row < count; ++row) {
        body(std::integral_constant<size_t, 1>{}, row);
    }
}

void score(
    const uint32_t* queries, size_t rows, size_t width, const uint32_t* keys, size_t blocks, float* scores,
    size_t stride) {
    for_row_tiles(rows, [&](auto some, size_t row) {
        for_lanes(blocks, [&](auto lanes, size_t block) {
            score_blocks<some.value, lanes.value>(
                queries + row * width / 2, width, keys + block * width / 2 * 16, scores + row * stride + block * 16,
                stride);
        });
    });
}

void gather(
    const uint32_t* weights, size_t stride, size_t rows, const uint32_t* values, size_t positions, size_t width,
    float* sums) {
    for_row_tiles(rows, [&](auto some, size_t row) {
        for_lanes(width / 16, [&](auto lanes, size_t column) {
            gather_columns<some.value, lanes.value>(
                weights + row * stride, stride, values + column * 16, positions, width,
                sums + row * width + column * 16);
        });
    });
}

}  // namespace

const Pairing avx512_pairing = {
    {{pair_keys<HalfNumbers>, pair_values<HalfNumbers>},
     {pair_keys<ByteNumbers>, pair_values<ByteNumbers>},
     {nullptr, nullptr},
     {pair_keys<UpperHalves>, pair_values<UpperHalves>}},
    pair_numbers};

const PairedAttention avx512_paired_attention = {&avx512_pairing, score, gather};

}  // namespace shearling

#pragma GCC pop_options

#endif
