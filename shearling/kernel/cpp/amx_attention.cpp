// Attention in tiles of bf16, for AMX. Pairs lie as AVX-512 makes them: a register of queries or weights is 16 rows of
// 16 pairs, one of keys or values 16 pairs of each of 16 columns.
#if defined(__x86_64__) && __has_include(<amxbf16intrin.h>)

#include <immintrin.h>

#include "kernels.hpp"

#pragma GCC push_options
#pragma GCC target("avx512f,amx-tile,amx-bf16")

namespace shearling {
namespace {

#include "amx_tiles.inc"

constexpr size_t side = 16;  // of a register, in words
static_assert(paired_rows == side && paired_positions == 2 * side);

// Where the registers of an operand lie, in pairs.
struct Operand {
    const uint32_t* pairs;
    size_t stride;  // from row to row
    size_t step;    // to what is multiplied next
    size_t second;  // to the register beside it

    inline __attribute__((always_inline)) const uint32_t* at(size_t place, size_t beside) const {
        return pairs + place * step + beside * second;
    }
};

// sums (+)= a * b, of two registers by two, or of one where there are no more.
template <bool add, bool two_a, bool two_b>
void multiply_registers(const Operand& a, const Operand& b, size_t steps, float* sums, size_t stride) {
    const size_t bytes = stride * sizeof(float), a_bytes = a.stride * sizeof(uint32_t),
                 b_bytes = b.stride * sizeof(uint32_t);
    float* const below = sums + side * stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if constexpr (add) {
        _tile_loadd(0, sums, bytes);
        if constexpr (two_b) {
            _tile_loadd(1, sums + side, bytes);
        }
        if constexpr (two_a) {
            _tile_loadd(2, below, bytes);
        }
        if constexpr (two_a && two_b) {
            _tile_loadd(3, below + side, bytes);
        }
    }
    for (size_t step = 0; step < steps; ++step) {
        _tile_loadd(4, a.at(step, 0), a_bytes);
        _tile_loadd(6, b.at(step, 0), b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (two_b) {
            _tile_loadd(7, b.at(step, 1), b_bytes);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (two_a) {
            _tile_loadd(5, a.at(step, 1), a_bytes);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (two_a && two_b) {
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, bytes);
    if constexpr (two_b) {
        _tile_stored(1, sums + side, bytes);
    }
    if constexpr (two_a) {
        _tile_stored(2, below, bytes);
    }
    if constexpr (two_a && two_b) {
        _tile_stored(3, below + side, bytes);
    }
}

// The same of all rows of a and columns of b.
template <bool add>
void multiply(
    const Operand& a, size_t rows, const Operand& b, size_t columns, size_t steps, float* sums, size_t stride) {
    const TileConfiguration configuration;
    for (size_t row = 0; row < rows; row += 2 * side) {
        for (size_t column = 0; column < columns; column += 2 * side) {
            const Operand left{a.at(0, row / side), a.stride, a.step, a.second},
                right{b.at(0, column / side), b.stride, b.step, b.second};
            float* const target = sums + row * stride + column;
            const bool two_a = rows - row > side, two_b = columns - column > side;
            if (two_a) {
                two_b ? multiply_registers<add, true, true>(left, right, steps, target, stride)
                      : multiply_registers<add, true, false>(left, right, steps, target, stride);
            } else {
                two_b ? multiply_registers<add, false, true>(left, right, steps, target, stride)
                      : multiply_registers<add, false, false>(left, right, steps, target, stride);
            }
        }
    }
}

void score(
    const uint32_t* queries, size_t rows, size_t width, const uint32_t* keys, size_t blocks, float* scores,
    size_t stride) {
    const size_t pairs = width / 2;
    const Operand a{queries, pairs, side, side * pairs}, b{keys, side, side * side, pairs * side};
    multiply<false>(a, rows, b, blocks * block_positions, pairs / side, scores, stride);
}

void gather(
    const uint32_t* weights, size_t stride, size_t rows, const uint32_t* values, size_t positions, size_t width,
    float* sums) {
    const Operand a{weights, stride, side, side * stride}, b{values, width, side * width, side};
    multiply<true>(a, rows, b, width, (positions + paired_positions - 1) / paired_positions, sums, width);
}

}  // namespace

const PairedAttention amx_paired_attention = {&avx512_pairing, score, gather};

}  // namespace shearling

#pragma GCC pop_options

#endif
