// Products of packed matrices with rows of activations, on the threads of the calling runtime.
#pragma once

#include <cstddef>

#include "kernels.hpp"
#include "threads.hpp"

namespace shearling {

enum class Precision { automatic, exact };

// At most 2^32 of them, so that the sizes of all buffers fit 64 bits; none are no work.
struct Rows {
    const float* data;
    size_t count;
    size_t stride;
};

// RMSNorm of every row before the product; none where gamma is null.
struct Norm {
    const float* gamma;
    float epsilon;
};

// The kernels of the best instruction set here, or those that SHEARLING_KERNEL names (amx,
// avx512_bf16, avx512, avx_vnni, avx2, portable).
const KernelSet& best_kernels();

// The kernels called `name`, or null where they are unknown or this processor cannot run them.
const KernelSet* find_kernels(const char* name);

struct Settings {
    const KernelSet& kernels;
    Precision precision;
    const Threads& threads;
};

// All of these throw std::bad_alloc, and std::length_error where x has too many rows.

// outputs[i] = matrices[i] norm(x) [+ bias] [+ residual], `count` matrices of equal columns.
void multiply(
    const PackedMatrix* matrices, size_t count, const Rows& x, const Norm& norm, const Output* outputs,
    const Settings& settings);

// down(function(gate norm(x)) * up norm(x))
struct Mlp {
    const PackedMatrix* gate;  // null: none
    const PackedMatrix* up;
    const PackedMatrix* down;
    Function function;
    Norm norm;
};

// output = mlp(x) [+ bias] [+ residual]
void multiply(const Mlp& mlp, const Rows& x, const Output& output, const Settings& settings);

class AttentionSteps;

// From the end of one attention to the start of the next:
// h = residual + projection_norm(projection x); y = h + mlp_norm(mlp(h)); z_i = next_i norm(y) [+ bias_i]
struct Layer {
    const PackedMatrix* projection;
    Norm projection_norm;
    Mlp mlp;
    Norm mlp_norm;
    Norm norm;
    const PackedMatrix* next;
    size_t next_count;
};

void multiply(
    const Layer& layer, const Rows& x, const Rows& residual, float* y, const Output* z, const Settings& settings);

// The same, where x is the output of an attention, which is computed before.
void multiply(
    const AttentionSteps& attention, const Layer& layer, const Rows& residual, float* y, const Output* z,
    const Settings& settings);

}  // namespace shearling
