// How the keys and values of an attention lie in its cache.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shearling {

// Numbers in half precision; in bytes, of which some of a position share a scale in half precision; in f32; or in the
// upper half of it.
enum class CacheType : uint8_t { f16, i8, f32, bf16 };
constexpr size_t cache_types = 4;
constexpr const char* cache_type_names[cache_types] = {"f16", "i8", "f32", "bf16"};

// Positions of a head that lie together: keys as [width][16], so that a lane is a position, and values as [16][width].
// Behind the bytes of a block lie their scales, [width / 32][16].
constexpr size_t block_positions = 16;
constexpr size_t scale_columns = 32;

constexpr size_t number_bytes(CacheType type) {
    return type == CacheType::i8 ? 1 : type == CacheType::f32 ? 4 : 2;
}

// What a position of a head takes; a block takes 16 times as much.
constexpr size_t slot_bytes(CacheType type, size_t width) {
    const size_t scales = type == CacheType::i8 ? (width + scale_columns - 1) / scale_columns : 0;
    return width * number_bytes(type) + scales * sizeof(uint16_t);
}

constexpr size_t block_bytes(CacheType type, size_t width) { return block_positions * slot_bytes(type, width); }

// The scales of 16 positions for columns [32 group, 32 group + 32) of a block in bytes.
inline const uint16_t* block_scales(const uint8_t* block, size_t width, size_t group) {
    return reinterpret_cast<const uint16_t*>(block + block_positions * width) + group * block_positions;
}

}  // namespace shearling
