#pragma once

#include <cstdint>

namespace shearling {

// A finite IEEE half as f32. `static`: every instruction set compiles its own.
[[maybe_unused]] static inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31,
                   fraction = half & 1023;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;
        return sign != 0 ? -magnitude : magnitude;
    }
    const uint32_t bits = sign | (exponent + 112) << 23 | fraction << 13;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// The nearest half, ties to even; what is beyond the largest becomes it.
[[maybe_unused]] static inline uint16_t float_to_half(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) {
        return 0x7E00;
    }
    if (magnitude >= 0x477FE000) {
        return static_cast<uint16_t>(sign | 0x7BFF);
    }
    if (magnitude < 0x38800000) {  // 0.5 has units of 2^-24 in its last place
        float small;
        __builtin_memcpy(&small, &magnitude, sizeof small);
        small += 0.5f;
        __builtin_memcpy(&bits, &small, sizeof bits);
        return static_cast<uint16_t>(sign | (bits - 0x3F000000));
    }
    const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1) - 0x38000000;
    return static_cast<uint16_t>(sign | rounded >> 13);
}

}  // namespace shearling
