// Kernels for AVX2 with FMA and BMI2: eight stored bytes are spread to their positions with one deposit.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "half.hpp"
#include "kernels.hpp"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt,bmi,bmi2")

namespace shearling {
namespace {

// Low `count` bytes from `bytes`; the matrix ends in 64 bytes that are not read otherwise.
inline uint64_t load_u64(const uint8_t* bytes) {
    uint64_t value;
    __builtin_memcpy(&value, bytes, sizeof value);
    return value;
}

const uint8_t* expand_bytes(uint64_t mask, const uint8_t* values, uint8_t* block) {
    for (int eighth = 0; eighth < 8; ++eighth, mask >>= 8) {
        const uint64_t positions = _pdep_u64(mask & 255, 0x0101010101010101u) * 255;
        const uint64_t spread = _pdep_u64(load_u64(values), positions);
        __builtin_memcpy(block + 8 * eighth, &spread, sizeof spread);
        values += _mm_popcnt_u64(mask & 255);
    }
    return values;
}

const uint8_t* expand_pairs(uint32_t mask, const uint8_t* values, uint8_t* block) {
    for (int eighth = 0; eighth < 8; ++eighth, mask >>= 4) {
        const uint64_t positions = _pdep_u64(mask & 15, 0x0001000100010001u) * 65535;
        const uint64_t spread = _pdep_u64(load_u64(values), positions);
        __builtin_memcpy(block + 8 * eighth, &spread, sizeof spread);
        values += 2 * _mm_popcnt_u32(mask & 15);
    }
    return values;
}

// Eight nibbles at bit `at` -> eight bytes.
inline uint64_t load_nibbles(const uint8_t* values, size_t at) {
    const uint64_t bits = load_u64(values + at / 8) >> (at % 8);
    return _pdep_u64(bits, 0x0F0F0F0F0F0F0F0Fu);
}

const uint8_t* expand_nibbles(uint64_t mask, const uint8_t* values, uint8_t* block) {
    size_t at = 0;
    for (int eighth = 0; eighth < 8; ++eighth, mask >>= 8) {
        const uint64_t positions = _pdep_u64(mask & 255, 0x0101010101010101u) * 255;
        const uint64_t nibbles = _pdep_u64(load_nibbles(values, at), positions);
        const uint64_t negative = nibbles & 0x0808080808080808u;
        const uint64_t spread = nibbles | (negative << 1) * 15;
        __builtin_memcpy(block + 8 * eighth, &spread, sizeof spread);
        at += 4 * static_cast<size_t>(_mm_popcnt_u64(mask & 255));
    }
    return values + (at + 7) / 8;
}

void expand_panel(const PackedMatrix& matrix, size_t index, uint8_t* scratch) {
    const uint8_t* masks = matrix.panel_masks(index);
    const uint8_t* values = matrix.panel_values(index);
    const uint64_t all = ~uint64_t{0} >> (64 - matrix.block_size());
    for (size_t block = 0; block < matrix.blocks(); ++block, scratch += 64) {
        uint64_t mask = all;
        if (masks != nullptr) {
            mask = 0;
            __builtin_memcpy(&mask, masks + block * matrix.mask_bytes(), matrix.mask_bytes());
        }
        if (matrix.value_type == ValueType::bf16) {
            values = expand_pairs(static_cast<uint32_t>(mask), values, scratch);
        } else if (matrix.value_type == ValueType::int8) {
            values = expand_bytes(mask, values, scratch);
        } else {
            values = expand_nibbles(mask, values, scratch);
        }
    }
}

#include "exact.inc"

void arrange(const float*, size_t, const Activations&, size_t, size_t) {}

}  // namespace

const KernelSet avx2_kernels = {"avx2", false, false, arrange, multiply_exact, normalise, activate};

}  // namespace shearling

#pragma GCC pop_options

#endif
