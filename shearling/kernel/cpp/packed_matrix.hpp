// A packed weight matrix, read in place. The format is specified in shearling/kernel/packed_format.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "threads.hpp"

namespace shearling {

constexpr size_t panel_rows = 16;

// 3 was int4 in another order.
enum class ValueType : uint32_t { bf16 = 1, int8 = 2, int4 = 4 };
constexpr bool known_value_type(uint32_t type) { return type == 1 || type == 2 || type == 4; }
// pairs: in memory only (pairs.hpp).
enum class Encoding : uint32_t { dense = 0, bitmask = 1, pairs = 2 };
// i8: bytes times a factor of the row, each product an f16.
enum class ScaleType : uint32_t { none = 0, f32 = 1, f16 = 2, i8 = 3 };
constexpr bool known_scale_type(uint32_t type) { return type <= 3; }

// What a matrix is, packed or not.
struct MatrixForm {
    ValueType value_type;
    Encoding encoding;
    ScaleType scale_type;
    size_t rows;
    size_t columns;
    size_t group_size;
};

struct PackedMatrix : MatrixForm {
    size_t stored;
    size_t total_bytes;
    const uint8_t* scales;
    const uint8_t* offsets;
    const uint8_t* masks;
    const uint8_t* values;
    size_t value_bytes;

    size_t block_columns() const { return value_type == ValueType::bf16 ? 2 : 4; }
    size_t block_size() const { return panel_rows * block_columns(); }
    size_t panels() const { return (rows + panel_rows - 1) / panel_rows; }
    size_t blocks() const { return (columns + block_columns() - 1) / block_columns(); }
    size_t groups() const { return group_size == 0 ? 1 : (columns + group_size - 1) / group_size; }
    size_t mask_bytes() const { return block_size() / 8; }
    // Bytes of the scales of a panel.
    size_t panel_scale_bytes() const {
        switch (scale_type) {
            case ScaleType::none: return 0;
            case ScaleType::f32: return groups() * panel_rows * sizeof(float);
            case ScaleType::f16: return groups() * panel_rows * sizeof(uint16_t);
            case ScaleType::i8: return panel_rows * sizeof(float) + groups() * panel_rows;
        }
        return 0;
    }
    const uint8_t* panel_scales(size_t panel) const { return scales + panel * panel_scale_bytes(); }
    // Blocks whose values share bytes: of int4 the lower nibbles are the first one's, the upper ones the second's.
    size_t blocks_together() const { return value_type == ValueType::int4 ? 2 : 1; }
    size_t dense_panel_bytes() const { return (blocks() + blocks_together() - 1) / blocks_together() * 64; }
    const uint8_t* panel_masks(size_t panel) const {
        return encoding != Encoding::bitmask ? nullptr : masks + panel * blocks() * mask_bytes();
    }
    const uint8_t* panel_values(size_t panel) const;
};

// Reads the header and checks it against itself and `size`. Returns null, or what is wrong; the matrix then stays
// untouched.
const char* read_header(const uint8_t* bytes, size_t size, PackedMatrix& matrix);

// Checks everything else: no kernel runs outside of a matrix that passed. Returns null, or what is wrong.
const char* validate(const PackedMatrix& matrix, const Threads& threads);

// Checks the scales alone, which `unpack` may then be asked for.
const char* validate_scales(const PackedMatrix& matrix);

// Reads the headers of `count` matrices that follow each other, and sets `end` to the byte after the last. Null, or
// what is wrong.
const char* read_headers(const uint8_t* bytes, size_t size, size_t count, PackedMatrix* matrices, size_t& end);

// Weights to be packed: bf16 as its bits, int4 in int8; scales [rows, groups] of scale_type, f32 or f16, or null.
struct PlainMatrix : MatrixForm {
    const void* values;
    const void* scales;
};

// Size of the packed form; 0 if the sizes do not fit each other or a value does not fit its type.
size_t packed_size(const PlainMatrix& plain);

// Writes packed_size(plain) bytes. Scales are stored as i8 where that is smaller and loses nothing.
void pack(const PlainMatrix& plain, uint8_t* packed);

// Writes [rows, columns] values and [rows, groups] scales, f16 where they are stored as i8, of a matrix that passed
// `validate`; each unless it is null.
void unpack(const PackedMatrix& matrix, void* values, void* scales, const Threads& threads);

// Size of the same matrix in the dense encoding.
size_t expanded_size(const PackedMatrix& matrix);

// Writes expanded_size(matrix) bytes: the same weights in the dense encoding, of a matrix that passed `validate`.
void expand(const PackedMatrix& matrix, uint8_t* packed, const Threads& threads);

// Writes one row, scaled, as `columns` f32, of a matrix that passed `validate`.
void read_row(const PackedMatrix& matrix, size_t row, float* target);

}  // namespace shearling
