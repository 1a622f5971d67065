// What every instruction set offers. Panels and rows may be split over threads in any way.
#pragma once

#include "activations.hpp"
#include "packed_matrix.hpp"

namespace shearling {

// Where results go: y[row * stride + output] = product + bias[output] + residual[row * residual_stride + output].
struct Output {
    float* data;
    size_t stride;
    const float* bias;
    const float* residual;
    size_t residual_stride;
};

enum class Function { silu, gelu_erf, gelu_tanh, relu };

// Rows of activations in one tile: as many as there are registers for their sums.
constexpr size_t fixed16_tile = 8;
constexpr size_t grouped8_tile = 12;
constexpr size_t wide32_tile = 12;
constexpr size_t once16_tile = 12;
constexpr size_t single_tile = 16;  // of bf16 pairs where there is no other tile: nothing is read twice
constexpr size_t expanded_bytes = size_t{256} << 10;

inline size_t scratch_bytes(const PackedMatrix& matrix) {
    const size_t panel = matrix.blocks() * 64;
    return panel > expanded_bytes ? panel : expanded_bytes;
}

struct KernelSet {
    const char* name;
    bool quantises;  // knows forms other than plain32
    // Arranges rows [first, last) of `source` ([rows, columns], rows `stride` apart).
    void (*arrange)(const float* source, size_t stride, const Activations& activations, size_t first, size_t last);
    // Multiplies panels [first, last) by all rows. `scratch` has scratch_bytes(matrix), aligned to 64 bytes, one for each thread.
    void (*multiply)(const PackedMatrix& matrix, const Activations& activations, size_t first, size_t last, const Output& output, uint8_t* scratch);
    // y[i] = gamma[i] * x[i] / sqrt(mean(x^2) + epsilon)
    void (*normalise)(const float* x, const float* gamma, float epsilon, size_t columns, float* y);
    // y[i] = function(x[i]) * factor[i]; factor may be null.
    void (*activate)(Function function, const float* x, const float* factor, size_t count, float* y);
};

void arrange_avx512(const float* source, size_t stride, const Activations& activations, size_t first, size_t last);

extern const KernelSet avx512_kernels;
extern const KernelSet avx2_kernels;
extern const KernelSet portable_kernels;

}  // namespace shearling
