// What every instruction set offers. Panels and rows may be split over threads in any way.
#pragma once

#include "activations.hpp"
#include "cache_layout.hpp"
#include "packed_matrix.hpp"

namespace shearling {

// Where results go: at(row, output) = product + bias[output] + residual[row * residual_stride + output].
struct Output {
    float* data;
    size_t stride;
    const float* bias;
    const float* residual;
    size_t residual_stride;
    size_t first = 0;  // of the outputs in data

    float* at(size_t row, size_t output) const { return data + row * stride + (output - first); }
};

enum class Function { silu, gelu_erf, gelu_tanh, relu };

// Rows of activations in one tile: as many as there are registers for their sums.
constexpr size_t fixed16_tile = 8;
constexpr size_t grouped8_tile = 12;
constexpr size_t paired_tile = 6;  // of grouped8 where two panels share every activation: from so many rows on
constexpr size_t least_paired_rows = 64;
constexpr size_t wide32_tile = 12;
constexpr size_t once16_tile = 12;
constexpr size_t single_tile = 16;  // of bf16 pairs where there is no other tile: nothing is read twice
constexpr size_t tiled_fixed16_tile = 16;
constexpr size_t tiled_once16_tile = 32;
constexpr size_t expanded_bytes = size_t{256} << 10;

// Most blocks of a tiled form that share a sum: what is expanded of them stays in the first-level cache, and sums of
// integers are exact in f32. For few rows fewer: expanding is most of the work, and needs room for the next ones.
constexpr size_t tiled_segment_blocks = 10;
static_assert(tiled_segment_blocks * 64 * 128 * 128 <= size_t{1} << 24);
constexpr size_t tiled_segment_blocks_for_few_rows = 4;
constexpr size_t tiled_few_rows = 64;
// Of activations, with room for all else in the second-level cache. Tests take fewer: small cases go beyond then.
#ifndef SHEARLING_NEAR_BYTES
#define SHEARLING_NEAR_BYTES (size_t{512} << 10)
#endif
constexpr size_t near_bytes = SHEARLING_NEAR_BYTES;
constexpr size_t tiled_scratch_bytes = (size_t{512} << 10) + 4 * tiled_segment_blocks * 1024 + 8192;

inline size_t scratch_bytes(const PackedMatrix& matrix, const Activations& activations) {
    if (activations.tiled()) {
        return tiled_scratch_bytes;
    }
    const size_t pair = 2 * matrix.blocks() * 64;
    return pair > expanded_bytes ? pair : expanded_bytes;
}

// Arrangements of activations, as bits.
template <class... Some>
constexpr uint32_t forms(Some... some) {
    return (0u | ... | (1u << static_cast<unsigned>(some)));
}

// Steps of an attention over a cache of one type (cache_layout.hpp); widths are multiples of 16, so are counts of
// scores.
struct CacheKernels {
    // scores[row * stride + position] = queries[row] . key(position)
    void (*score)(
        const float* queries, size_t rows, size_t width, const uint8_t* keys, size_t blocks, float* scores,
        size_t stride);
    // sums[row] += sum over positions of weights[row * stride + position] * value(position)
    void (*gather)(
        const float* weights, size_t stride, size_t rows, const uint8_t* values, size_t positions, size_t width,
        float* sums);
    // Write a head at a place of a block; what the type cannot hold becomes its largest.
    void (*store_key)(const float* head, size_t width, uint8_t* block, size_t place);
    void (*store_value)(const float* head, size_t width, uint8_t* block, size_t place);
};

struct AttentionKernels {
    CacheKernels cache[cache_types];
    float (*largest_of)(const float* scores, size_t count);
    // scores[i] = e^(scores[i] - largest); their sum.
    float (*exponentiate)(float* scores, size_t count, float largest);
    // target = scale * (head turned by the angles): lane i of either half by cosines and sines [2 * half].
    void (*rotate)(
        const float* head, const float* cosines, const float* sines, size_t half, float scale, float* target);

    const CacheKernels& of(CacheType type) const { return cache[static_cast<size_t>(type)]; }
};

// Makes pairs of bf16 of what a cache holds. Keys: a block of [width][16] becomes [width / 2][16] pairs. Values:
// [positions][width] become [positions / 2][width] pairs, of a position and the next.
struct CachePairs {
    void (*keys)(const uint8_t* keys, size_t width, size_t blocks, uint32_t* pairs);
    void (*values)(const uint8_t* values, size_t width, size_t positions, uint32_t* pairs);
};

// How pairs of bf16 are made.
struct Pairing {
    CachePairs cache[cache_types];  // null for f32
    // Pairs of neighbours; `count` is a multiple of 32.
    void (*pair_numbers)(const float* numbers, size_t count, uint32_t* pairs);

    const CachePairs& of(CacheType type) const { return cache[static_cast<size_t>(type)]; }
};

constexpr size_t paired_rows = 16;
constexpr size_t paired_positions = 32;

// The products of an attention in pairs of bf16, where many queries meet the same keys and values: pairs are made once
// for all of them.
struct PairedAttention {
    const Pairing* pairing;
    // As `score` and `gather` of CacheKernels: queries [rows][width / 2], weights [row][stride pairs]. Rows, of all of
    // these, have room up to a multiple of `paired_rows`, weights and values up to one of `paired_positions`, where
    // they are zero.
    void (*score)(
        const uint32_t* queries, size_t rows, size_t width, const uint32_t* keys, size_t blocks, float* scores,
        size_t stride);
    void (*gather)(
        const uint32_t* weights, size_t stride, size_t rows, const uint32_t* values, size_t positions, size_t width,
        float* sums);
};

struct KernelSet {
    const char* name;
    uint32_t known;  // forms; every set knows plain32
    // Arranges rows [first, last) of `source` ([rows, columns], rows `stride` apart).
    void (*arrange)(const float* source, size_t stride, const Activations& activations, size_t first, size_t last);
    // Multiplies panels [first, last) by all rows. `scratch` has scratch_bytes(matrix, activations), aligned to 64
    // bytes, one for each thread.
    void (*multiply)(
        const PackedMatrix& matrix, const Activations& activations, size_t first, size_t last, const Output& output,
        uint8_t* scratch);
    // y[i] = gamma[i] * x[i] / sqrt(mean(x^2) + epsilon)
    void (*normalise)(const float* x, const float* gamma, float epsilon, size_t columns, float* y);
    // y[i] = function(x[i]) * factor[i]; factor may be null.
    void (*activate)(Function function, const float* x, const float* factor, size_t count, float* y);
    const AttentionKernels* attention;
    const PairedAttention* paired_attention;  // null where the processor has no such products
    uint32_t known_of_int4 = 0;               // forms for int4 alone
    // Rows that these forms multiply at once where a tile has no more; 0: the tiles above.
    size_t fixed16_rows = 0;
    size_t grouped8_rows = 0;
    // Whether matrices in pairs are multiplied faster than those of the same weights in bitmasks.
    bool prefers_pairs = false;

    bool knows(Form form) const { return (known & forms(form)) != 0; }
    bool knows(Form form, ValueType type) const {
        return ((type == ValueType::int4 ? known | known_of_int4 : known) & forms(form)) != 0;
    }
};

void arrange_avx512(const float* source, size_t stride, const Activations& activations, size_t first, size_t last);

extern const AttentionKernels avx512_attention;
extern const Pairing avx512_pairing;
extern const PairedAttention avx512_paired_attention;
extern const PairedAttention amx_paired_attention;
bool has_tile_registers();
bool has_avx_vnni();

extern const KernelSet amx_kernels;
extern const KernelSet avx512_bf16_kernels;
extern const KernelSet avx512_kernels;
extern const KernelSet avx_vnni_kernels;
extern const KernelSet avx2_kernels;
extern const KernelSet portable_kernels;

}  // namespace shearling
