// Products of packed matrices with rows of activations, on the threads of the calling runtime.
#pragma once

#include <cstddef>

#include "kernels.hpp"

namespace shearling {

enum class Precision { automatic, exact };

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

// The kernels of the best instruction set here, or those that SHEARLING_KERNEL (avx512, avx2, portable) names.
const KernelSet& best_kernels();

// The kernels called `name`, or null where they are unknown or this processor cannot run them.
const KernelSet* find_kernels(const char* name);

struct Settings {
    const KernelSet& kernels;
    Precision precision;
};

// outputs[i] = matrices[i] norm(x) [+ bias] [+ residual], `count` matrices of equal columns.
void multiply(const PackedMatrix* matrices, size_t count, const Rows& x, const Norm& norm, const Output* outputs, const Settings& settings);

struct Mlp {
    const PackedMatrix* gate;  // null: none
    const PackedMatrix* up;
    const PackedMatrix* down;
    Function function;
};

// output = down(function(gate norm(x)) * up norm(x)) [+ bias] [+ residual]
void multiply(const Mlp& mlp, const Rows& x, const Norm& norm, const Output& output, const Settings& settings);

}  // namespace shearling
