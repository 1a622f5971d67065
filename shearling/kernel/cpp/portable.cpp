// Kernels for any processor.
#include <cmath>
#include <cstring>

#include "half.hpp"
#include "kernels.hpp"

namespace shearling {
namespace {

void expand_panel(const PackedMatrix& matrix, size_t index, uint8_t* scratch) {
    const uint8_t* masks = matrix.panel_masks(index);
    const uint8_t* values = matrix.panel_values(index);
    const size_t value_size = matrix.value_type == ValueType::bf16 ? 2 : 1;
    for (size_t block = 0; block < matrix.blocks(); ++block, scratch += 64) {
        uint64_t mask = ~uint64_t{0} >> (64 - matrix.block_size());
        if (masks != nullptr) {
            mask = 0;
            __builtin_memcpy(&mask, masks + block * matrix.mask_bytes(), matrix.mask_bytes());
        }
        __builtin_memset(scratch, 0, 64);
        size_t count = 0;
        for (; mask != 0; mask &= mask - 1, ++count) {
            const size_t position = static_cast<size_t>(__builtin_ctzll(mask));
            if (matrix.value_type == ValueType::int4) {
                const uint8_t nibble = values[count / 2] >> (count % 2 * 4) & 15;
                scratch[position] = static_cast<uint8_t>((nibble ^ 8) - 8);
            } else {
                __builtin_memcpy(scratch + position * value_size, values + count * value_size, value_size);
            }
        }
        values += matrix.value_type == ValueType::int4 ? (count + 1) / 2 : count * value_size;
    }
}

#include "exact.inc"

Lanes load_halves(const uint16_t* halves) {
    Lanes values;
    for (int lane = 0; lane < 16; ++lane) {
        values[lane] = half_to_float(halves[lane]);
    }
    return values;
}

void store_halves(const float* source, uint16_t* target) {
    for (int lane = 0; lane < 16; ++lane) {
        target[lane] = float_to_half(source[lane]);
    }
}

constexpr size_t attention_rows = 3;
constexpr size_t attention_lanes = 1;

#include "attention.inc"

void arrange(const float*, size_t, const Activations&, size_t, size_t) {}

}  // namespace

const KernelSet portable_kernels = {
    "portable", forms(), arrange, multiply_exact, normalise, activate, &attention_kernels, nullptr};

}  // namespace shearling
