#include "packed_matrix.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "packed_layout.hpp"
#include "pairs.hpp"

namespace shearling {
namespace {

size_t count_bits(uint64_t bits) { return static_cast<size_t>(__builtin_popcountll(bits)); }

// `block`: which one of those that share bytes.
template <ValueType type>
float stored_value(const uint8_t* stored, size_t block, size_t place) {
    if constexpr (type == ValueType::bf16) {
        uint16_t half;
        std::memcpy(&half, stored + 2 * place, sizeof half);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    } else if constexpr (type == ValueType::int8) {
        return static_cast<float>(static_cast<int8_t>(stored[place]));
    } else {
        return static_cast<float>(signed_nibble(nibble_at(stored, block, place)));
    }
}

float scale_of(const PackedMatrix& matrix, size_t row, size_t column) {
    const size_t group = matrix.group_size == 0 ? 0 : column / matrix.group_size;
    return scale_at(matrix, row / panel_rows, group, row % panel_rows);
}

template <ValueType type>
void read_row_of(const PackedMatrix& matrix, size_t row, float* target) {
    constexpr size_t width = type == ValueType::bf16 ? 2 : 4;
    const size_t panel = row / panel_rows, lane = row % panel_rows;
    const uint64_t before = (uint64_t{1} << lane * width) - 1;
    const uint8_t* stored = matrix.panel_values(panel);
    float scale = scale_of(matrix, row, 0);
    for (size_t start = 0; start < matrix.blocks(); start += matrix.blocks_together()) {
        const BlockGroup group = group_at(matrix, panel, start);
        for (size_t block = 0; block < group.count; ++block) {
            const size_t first = (start + block) * width, count = std::min(width, matrix.columns - first);
            if (matrix.groups() > 1) {
                scale = scale_of(matrix, row, first);  // groups are whole blocks
            }
            const uint64_t mask = group.masks[block];
            size_t place = count_bits(mask & before);
            for (size_t column = 0; column < count; ++column) {
                const bool kept = (mask >> (lane * width + column) & 1) != 0;
                target[first + column] = kept ? stored_value<type>(stored, block, place) * scale : 0.0f;
                place += kept ? 1 : 0;
            }
        }
        stored += value_bytes(type, group.fullest());
    }
}

}  // namespace

const uint8_t* PackedMatrix::panel_values(size_t panel) const {
    switch (encoding) {
        case Encoding::dense: return values + panel * dense_panel_bytes();
        case Encoding::bitmask: return values + load_u64(offsets + panel * sizeof(uint64_t));
        case Encoding::pairs: return values + panel * (value_bytes / panels());
    }
    return nullptr;
}

const char* read_header(const uint8_t* bytes, size_t size, PackedMatrix& matrix) {
    if (size < header_bytes + alignment) {
        return "too short for a packed matrix";
    }
    Header header;
    std::memcpy(&header, bytes, sizeof header);
    if (std::memcmp(header.magic, magic, sizeof header.magic) != 0 || header.version != 1) {
        return "not a packed matrix of version 1";
    }
    if (header.value_type == 3) {
        return "it is int4 in the layout of an earlier version";
    }
    if (!known_value_type(header.value_type) || header.encoding > 1 || !known_scale_type(header.scale_type)) {
        return "unknown value type, encoding or scale type";
    }
    if (header.rows == 0 || header.rows > max_size || header.columns == 0 || header.columns > max_size) {
        return "rows or columns are out of range";
    }
    PackedMatrix found{};
    found.value_type = static_cast<ValueType>(header.value_type);
    found.encoding = static_cast<Encoding>(header.encoding);
    found.scale_type = static_cast<ScaleType>(header.scale_type);
    found.rows = header.rows;
    found.columns = header.columns;
    found.group_size = header.group_size;
    found.stored = header.stored;
    found.total_bytes = header.total;
    if (!plausible_group(found.value_type, found.scale_type, found.group_size, found.columns)) {
        return "the group size does not fit";
    }
    if (header.total != size || size % alignment != 0 || !all_zero(bytes + sizeof header, bytes + header_bytes)) {
        return "the header promises another size";
    }
    size_t at[4];
    section_offsets(found, at);
    if (header.scales_at != at[0] || header.offsets_at != at[1] || header.masks_at != at[2] ||
        header.values_at != at[3] || at[3] > size - alignment) {
        return "the sections do not follow from the sizes";
    }
    found.scales = bytes + at[0];
    found.offsets = bytes + at[1];
    found.masks = bytes + at[2];
    found.values = bytes + at[3];
    found.value_bytes = size - alignment - at[3];
    matrix = found;
    return nullptr;
}

const char* read_headers(const uint8_t* bytes, size_t size, size_t count, PackedMatrix* matrices, size_t& end) {
    end = 0;
    for (size_t index = 0; index < count; ++index) {
        if (size - end < header_bytes) {
            return "too short for the packed matrices that its operator names";
        }
        const uint64_t total = load_u64(bytes + end + offsetof(Header, total));
        if (total > size - end) {
            return "the header promises another size";
        }
        if (const char* fault = read_header(bytes + end, total, matrices[index])) {
            return fault;
        }
        end += total;
    }
    return nullptr;
}

void read_row(const PackedMatrix& matrix, size_t row, float* target) {
    if (matrix.encoding == Encoding::pairs) {
        return read_paired_row(matrix, row, target);
    }
    switch (matrix.value_type) {
        case ValueType::bf16: return read_row_of<ValueType::bf16>(matrix, row, target);
        case ValueType::int8: return read_row_of<ValueType::int8>(matrix, row, target);
        case ValueType::int4: return read_row_of<ValueType::int4>(matrix, row, target);
    }
}

}  // namespace shearling
