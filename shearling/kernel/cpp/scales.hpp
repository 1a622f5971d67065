// The scales of a packed matrix, one at a time.
#pragma once

#include "half.hpp"
#include "packed_matrix.hpp"

namespace shearling {

// A panel's scales as i8: factors of its rows, f32, and behind them the bytes of group after group. A row's factor is
// the largest number that all its scales are multiples of.
constexpr size_t i8_scales_at = panel_rows * sizeof(float);
constexpr int most_i8 = 127;
constexpr float least_half = 5.9604644775390625e-8f;  // 2^-24

// Whether bytes and factors take less than halves.
constexpr bool i8_is_smaller(size_t groups) { return i8_scales_at + groups * panel_rows < groups * panel_rows * 2; }

// Whether a finite f32 is an IEEE half, too. `static`, as in half.hpp.
[[maybe_unused]] static inline bool is_half(float value) {
    const float half = half_to_float(float_to_half(value));
    return __builtin_memcmp(&half, &value, sizeof value) == 0;
}

// Of a row of a panel.
[[maybe_unused]] static inline float scale_at(const PackedMatrix& matrix, size_t panel, size_t group, size_t row) {
    const uint8_t* const scales = matrix.panel_scales(panel);
    const size_t place = group * panel_rows + row;
    float scale = 1.0f;
    uint16_t half = 0;
    switch (matrix.scale_type) {
        case ScaleType::none: return scale;
        case ScaleType::f32: __builtin_memcpy(&scale, scales + place * sizeof scale, sizeof scale); return scale;
        case ScaleType::f16: __builtin_memcpy(&half, scales + place * sizeof half, sizeof half); break;
        case ScaleType::i8:
            __builtin_memcpy(&scale, scales + row * sizeof scale, sizeof scale);
            return scale * static_cast<float>(static_cast<int8_t>(scales[i8_scales_at + place]));
    }
    return half_to_float(half);
}

}  // namespace shearling
