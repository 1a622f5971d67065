// Where the bytes of a packed matrix lie, for those who read, check or write them.
#pragma once

#include <algorithm>
#include <cstring>

#include "packed_matrix.hpp"
#include "scales.hpp"

namespace shearling {

constexpr size_t header_bytes = 128;
constexpr size_t alignment = 64;
constexpr size_t max_size = size_t{1} << 24;
constexpr char magic[] = "SHEARLNG";

struct Header {
    char magic[8];
    uint32_t version, value_type, encoding, scale_type;
    uint64_t rows, columns, group_size, stored, total, scales_at, offsets_at, masks_at, values_at;
};
static_assert(sizeof(Header) == 96, "the header has no gaps");

inline size_t align(size_t offset) { return (offset + alignment - 1) / alignment * alignment; }

inline uint64_t load_u64(const uint8_t* bytes) {
    uint64_t value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

inline uint64_t load_mask(const uint8_t* bytes, size_t size) {
    uint64_t mask = 0;
    std::memcpy(&mask, bytes, size);
    return mask;
}

// Bytes of a scale that is unpacked.
inline size_t scale_bytes(ScaleType type) { return type == ScaleType::none ? 0 : type == ScaleType::f32 ? 4 : 2; }

// Bytes of the values of blocks that share them, of which the fullest stores `count`.
inline size_t value_bytes(ValueType type, size_t count) { return type == ValueType::bf16 ? 2 * count : count; }

// Blocks that share bytes, at most two.
struct BlockGroup {
    size_t first;
    size_t count;
    uint64_t masks[2];
    size_t stored[2];

    size_t fullest() const { return std::max(stored[0], stored[1]); }
};

// Those that begin at a block of a panel.
inline BlockGroup group_at(const PackedMatrix& matrix, size_t panel, size_t first) {
    BlockGroup group{first, std::min(matrix.blocks_together(), matrix.blocks() - first), {}, {}};
    for (size_t place = 0; place < group.count; ++place) {
        group.masks[place] = matrix.encoding == Encoding::dense
                                 ? ~uint64_t{0} >> (64 - matrix.block_size())
                                 : load_mask(
                                       matrix.panel_masks(panel) + (first + place) * matrix.mask_bytes(),
                                       matrix.mask_bytes());
        group.stored[place] = static_cast<size_t>(__builtin_popcountll(group.masks[place]));
    }
    return group;
}

// The nibble that a block of a group stores in its place.
inline uint8_t nibble_at(const uint8_t* values, size_t block, size_t place) {
    return values[place] >> block * 4 & 15;
}

inline int8_t signed_nibble(uint8_t nibble) { return static_cast<int8_t>((nibble ^ 8) - 8); }

inline bool plausible_group(ValueType type, ScaleType scales, size_t group_size, size_t columns) {
    if (type == ValueType::bf16) {
        return scales == ScaleType::none && group_size == 0;
    }
    return scales != ScaleType::none && group_size > 0 && group_size <= columns &&
           (group_size % 4 == 0 || group_size == columns) &&
           (scales != ScaleType::i8 || i8_is_smaller((columns + group_size - 1) / group_size));
}

// Offsets of the sections follow from the sizes; `matrix` has all but its pointers.
inline void section_offsets(const PackedMatrix& matrix, size_t (&at)[4]) {
    const bool masked = matrix.encoding == Encoding::bitmask;
    at[0] = header_bytes;
    at[1] = align(at[0] + matrix.panels() * matrix.panel_scale_bytes());
    at[2] = align(at[1] + (masked ? (matrix.panels() + 1) * sizeof(uint64_t) : 0));
    at[3] = align(at[2] + (masked ? matrix.panels() * matrix.blocks() * matrix.mask_bytes() : 0));
}

// Where the values of a panel start, as the matrix says; those behind the last panel end there.
inline size_t panel_start(const PackedMatrix& matrix, size_t panel) {
    return matrix.encoding == Encoding::dense ? panel * matrix.dense_panel_bytes()
                                              : load_u64(matrix.offsets + panel * sizeof(uint64_t));
}

inline bool finite_bf16(uint16_t bits) { return (bits & 0x7F80) != 0x7F80; }

inline bool finite_scale(const uint8_t* scale, ScaleType type) {
    if (type == ScaleType::f32) {
        uint32_t bits;
        std::memcpy(&bits, scale, sizeof bits);
        return (bits & 0x7F800000) != 0x7F800000;
    }
    uint16_t bits;
    std::memcpy(&bits, scale, sizeof bits);
    return (bits & 0x7C00) != 0x7C00;
}

inline bool all_zero(const uint8_t* first, const uint8_t* last) {
    return std::all_of(first, last, [](uint8_t byte) { return byte == 0; });
}

}  // namespace shearling
