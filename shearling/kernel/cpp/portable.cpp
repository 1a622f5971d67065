// Kernels for any processor.
#include <cmath>
#include <cstring>

#include "kernels.hpp"
#include "packed_layout.hpp"
#include "scales.hpp"

namespace shearling {
namespace {

void expand_panel(const PackedMatrix& matrix, size_t index, uint8_t* scratch) {
    const uint8_t* values = matrix.panel_values(index);
    const size_t value_size = matrix.value_type == ValueType::bf16 ? 2 : 1;
    for (size_t first = 0; first < matrix.blocks(); first += matrix.blocks_together()) {
        const BlockGroup group = group_at(matrix, index, first);
        for (size_t block = 0; block < group.count; ++block, scratch += 64) {
            std::memset(scratch, 0, 64);
            uint64_t mask = group.masks[block];
            for (size_t count = 0; mask != 0; mask &= mask - 1, ++count) {
                const size_t position = static_cast<size_t>(__builtin_ctzll(mask));
                if (matrix.value_type == ValueType::int4) {
                    scratch[position] = static_cast<uint8_t>(signed_nibble(nibble_at(values, block, count)));
                } else {
                    std::memcpy(scratch + position * value_size, values + count * value_size, value_size);
                }
            }
        }
        values += value_bytes(matrix.value_type, group.fullest());
    }
}

constexpr size_t lane_count = 4;

template <class Lanes>
Lanes multiply_add(Lanes a, Lanes b, Lanes sum) {
    return a * b + sum;
}

#include "exact.inc"

Lanes load_halves(const uint16_t* halves) {
    Lanes values;
    for (size_t lane = 0; lane < lane_count; ++lane) {
        values[lane] = half_to_float(halves[lane]);
    }
    return values;
}

void store_halves(const float* source, uint16_t* target) {
    for (int lane = 0; lane < 16; ++lane) {
        target[lane] = float_to_half(source[lane]);
    }
}

Lanes load_bytes(const int8_t* bytes) {
    Lanes values;
    for (size_t lane = 0; lane < lane_count; ++lane) {
        values[lane] = bytes[lane];
    }
    return values;
}

void store_bytes(const float* source, float factor, int8_t* target) {
    for (int lane = 0; lane < 16; ++lane) {
        const float value = source[lane] * factor;
        // What is no number becomes the least, as in vectors.
        target[lane] = static_cast<int8_t>(std::nearbyint(value > -127.0f ? std::fmin(value, 127.0f) : -127.0f));
    }
}

constexpr size_t attention_rows = 3;
constexpr size_t attention_vectors = 4;

#include "attention.inc"

void arrange(const float*, size_t, const Activations&, size_t, size_t) {}

}  // namespace

const KernelSet portable_kernels = {
    "portable", forms(), arrange, multiply_exact, normalise, activate, &attention_kernels, nullptr};

}  // namespace shearling
