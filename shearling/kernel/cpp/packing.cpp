// Weights to their packed form and back.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

#include "packed_layout.hpp"

namespace shearling {
namespace {

// The factor of a row of halves as i8, in units of the least of them; 0 where all are zeros, nothing where they are no
// such bytes.
std::optional<uint64_t> factor_of(const uint16_t* halves, size_t groups) {
    uint64_t divisor = 0, most = 0;
    for (size_t group = 0; group < groups; ++group) {
        const uint16_t half = halves[group];
        if (half == 0x8000) {  // a byte has no negative zero
            return {};
        }
        const auto size = static_cast<uint64_t>(std::fabs(half_to_float(half)) / least_half);
        divisor = std::gcd(divisor, size);
        most = std::max(most, size);
    }
    return divisor != 0 && most / divisor > most_i8 ? std::nullopt : std::optional{divisor};
}

bool fits_i8(const PlainMatrix& plain, size_t groups) {
    if (plain.scale_type != ScaleType::f16 || !i8_is_smaller(groups)) {
        return false;
    }
    const auto* halves = static_cast<const uint16_t*>(plain.scales);
    for (size_t row = 0; row < plain.rows; ++row) {
        if (!factor_of(halves + row * groups, groups)) {
            return false;
        }
    }
    return true;
}

PackedMatrix same_form(const PlainMatrix& plain) {
    PackedMatrix matrix{};
    static_cast<MatrixForm&>(matrix) = plain;
    return matrix;
}

// What the packed matrix is, but for its pointers, of values and scales that fit.
PackedMatrix sizes_of(const PlainMatrix& plain) {
    PackedMatrix matrix = same_form(plain);
    if (fits_i8(plain, matrix.groups())) {
        matrix.scale_type = ScaleType::i8;
    }
    return matrix;
}

void pack_scales(const PlainMatrix& plain, const PackedMatrix& matrix, uint8_t* packed) {
    const size_t size = scale_bytes(plain.scale_type), groups = matrix.groups();
    for (size_t row = 0; row < (size == 0 ? 0 : plain.rows); ++row) {
        uint8_t* target = packed + row / panel_rows * matrix.panel_scale_bytes();
        const size_t lane = row % panel_rows;
        const auto* scales = static_cast<const uint8_t*>(plain.scales) + row * groups * size;
        if (matrix.scale_type != ScaleType::i8) {
            for (size_t group = 0; group < groups; ++group) {
                std::memcpy(target + (group * panel_rows + lane) * size, scales + group * size, size);
            }
            continue;
        }
        const auto* halves = reinterpret_cast<const uint16_t*>(scales);
        const float factor = static_cast<float>(*factor_of(halves, groups)) * least_half;
        std::memcpy(target + lane * sizeof factor, &factor, sizeof factor);
        for (size_t group = 0; group < groups; ++group) {
            const float byte = factor == 0.0f ? 0.0f : half_to_float(halves[group]) / factor;
            target[i8_scales_at + group * panel_rows + lane] = static_cast<uint8_t>(static_cast<int8_t>(byte));
        }
    }
}

struct Block {
    uint64_t mask;
    size_t count;
    uint16_t bits[64];
};

// The numbers of a block in the order of their positions: those that are stored, and none beyond the matrix but where
// zeros are stored, too.
template <class Number>
Block gather_numbers(const PlainMatrix& plain, const PackedMatrix& matrix, size_t panel, size_t block) {
    Block gathered{};
    const size_t width = matrix.block_columns(), first = panel * panel_rows, start = block * width;
    const size_t rows = std::min(panel_rows, plain.rows - first), columns = std::min(width, plain.columns - start);
    const auto kept_bits = static_cast<Number>(plain.value_type == ValueType::int4 ? 15 : ~Number{0});
    const Number* row_start = static_cast<const Number*>(plain.values) + first * plain.columns + start;
    const bool all = plain.encoding == Encoding::dense;
    for (size_t row = 0; row < rows; ++row, row_start += plain.columns) {
        for (size_t column = 0; column < columns; ++column) {
            const auto bits = static_cast<Number>(row_start[column] & kept_bits);
            const size_t position = row * width + column;
            gathered.bits[all ? position : gathered.count] = bits;
            gathered.count += bits != 0 ? 1 : 0;
            gathered.mask |= uint64_t{bits != 0} << position;
        }
    }
    if (all) {
        gathered.mask = ~uint64_t{0} >> (64 - matrix.block_size());
        gathered.count = matrix.block_size();
    }
    return gathered;
}

Block gather_block(const PlainMatrix& plain, const PackedMatrix& matrix, size_t panel, size_t block) {
    return plain.value_type == ValueType::bf16 ? gather_numbers<uint16_t>(plain, matrix, panel, block)
                                               : gather_numbers<uint8_t>(plain, matrix, panel, block);
}

bool values_fit(const PlainMatrix& plain) {
    const size_t count = plain.rows * plain.columns;
    if (plain.value_type == ValueType::bf16) {
        const auto* bits = static_cast<const uint16_t*>(plain.values);
        return std::all_of(bits, bits + count, finite_bf16);
    }
    const auto* values = static_cast<const int8_t*>(plain.values);
    if (plain.value_type == ValueType::int4 &&
        !std::all_of(values, values + count, [](int8_t value) { return value >= -8 && value <= 7; })) {
        return false;
    }
    const auto* scales = static_cast<const uint8_t*>(plain.scales);
    const size_t size = scale_bytes(plain.scale_type);
    const size_t scale_count = plain.rows * same_form(plain).groups();
    for (size_t index = 0; index < scale_count; ++index) {
        if (!finite_scale(scales + index * size, plain.scale_type)) {
            return false;
        }
    }
    return true;
}

void unpack_panel(const PackedMatrix& matrix, size_t panel, uint8_t* plain) {
    const size_t width = matrix.block_columns();
    const size_t value_size = matrix.value_type == ValueType::bf16 ? 2 : 1;
    const size_t first = panel * panel_rows, rows = std::min(panel_rows, matrix.rows - first);
    std::memset(plain + first * matrix.columns * value_size, 0, rows * matrix.columns * value_size);
    const uint8_t* stored = matrix.panel_values(panel);
    for (size_t start = 0; start < matrix.blocks(); start += matrix.blocks_together()) {
        const BlockGroup group = group_at(matrix, panel, start);
        for (size_t block = 0; block < group.count; ++block) {
            uint64_t mask = group.masks[block];
            for (size_t count = 0; mask != 0; mask &= mask - 1, ++count) {
                const size_t position = static_cast<size_t>(__builtin_ctzll(mask));
                const size_t row = first + position / width;
                const size_t column = (start + block) * width + position % width;
                if (row >= matrix.rows || column >= matrix.columns) {
                    continue;
                }
                uint8_t* place = plain + (row * matrix.columns + column) * value_size;
                if (matrix.value_type == ValueType::int4) {
                    *place = static_cast<uint8_t>(signed_nibble(nibble_at(stored, block, count)));
                } else {
                    std::memcpy(place, stored + count * value_size, value_size);
                }
            }
        }
        stored += value_bytes(matrix.value_type, group.fullest());
    }
}

void unpack_scales(const PackedMatrix& matrix, size_t panel, uint8_t* scales) {
    const size_t size = scale_bytes(matrix.scale_type), groups = matrix.groups();
    const size_t first = panel * panel_rows, rows = std::min(panel_rows, matrix.rows - first);
    for (size_t row = 0; row < (size == 0 ? 0 : rows); ++row) {
        for (size_t group = 0; group < groups; ++group) {
            const float scale = scale_at(matrix, panel, group, row);
            const uint16_t half = float_to_half(scale);
            const void* stored = size == sizeof half ? static_cast<const void*>(&half) : &scale;
            std::memcpy(scales + ((first + row) * groups + group) * size, stored, size);
        }
    }
}

// `matrix` has all but its pointers.
void write_header(const PackedMatrix& matrix, size_t stored, size_t total, uint8_t* packed) {
    size_t at[4];
    section_offsets(matrix, at);
    Header header{};
    std::memcpy(header.magic, magic, sizeof header.magic);
    header.version = 1;
    header.value_type = static_cast<uint32_t>(matrix.value_type);
    header.encoding = static_cast<uint32_t>(matrix.encoding);
    header.scale_type = static_cast<uint32_t>(matrix.scale_type);
    header.rows = matrix.rows;
    header.columns = matrix.columns;
    header.group_size = matrix.group_size;
    header.stored = stored;
    header.total = total;
    header.scales_at = at[0];
    header.offsets_at = at[1];
    header.masks_at = at[2];
    header.values_at = at[3];
    std::memcpy(packed, &header, sizeof header);
}

size_t dense_bytes(const PackedMatrix& matrix) {
    size_t at[4];
    section_offsets(matrix, at);
    return align(at[3] + matrix.panels() * matrix.dense_panel_bytes()) + alignment;
}

PackedMatrix dense_form(const PackedMatrix& matrix) {
    PackedMatrix dense{};
    static_cast<MatrixForm&>(dense) = matrix;
    dense.encoding = Encoding::dense;
    return dense;
}

// Writes the values of a panel, zeros too: 64 bytes for every block, or two of int4.
void expand_panel(const PackedMatrix& matrix, size_t panel, uint8_t* target) {
    constexpr size_t dense_block_bytes = 64;
    const size_t value_size = matrix.value_type == ValueType::bf16 ? 2 : 1;
    const uint8_t* stored = matrix.panel_values(panel);
    std::memset(target, 0, matrix.dense_panel_bytes());
    for (size_t start = 0; start < matrix.blocks(); start += matrix.blocks_together()) {
        const BlockGroup group = group_at(matrix, panel, start);
        for (size_t block = 0; block < group.count; ++block) {
            uint64_t mask = group.masks[block];
            for (size_t count = 0; mask != 0; mask &= mask - 1, ++count) {
                const auto position = static_cast<size_t>(__builtin_ctzll(mask));
                if (matrix.value_type == ValueType::int4) {
                    const int nibble = nibble_at(stored, block, count) << block * 4;
                    target[position] = static_cast<uint8_t>(target[position] | nibble);
                } else {
                    std::memcpy(target + position * value_size, stored + count * value_size, value_size);
                }
            }
        }
        stored += value_bytes(matrix.value_type, group.fullest());
        target += dense_block_bytes;
    }
}

}  // namespace

size_t packed_size(const PlainMatrix& plain) {
    const bool sized = plain.rows > 0 && plain.rows <= max_size && plain.columns > 0 && plain.columns <= max_size;
    if (!sized || !plausible_group(plain.value_type, plain.scale_type, plain.group_size, plain.columns) ||
        !values_fit(plain)) {
        return 0;
    }
    const PackedMatrix matrix = sizes_of(plain);
    if (plain.encoding == Encoding::dense) {
        return dense_bytes(matrix);
    }
    size_t at[4];
    section_offsets(matrix, at);
    size_t bytes = 0;
    for (size_t panel = 0; panel < matrix.panels(); ++panel) {
        for (size_t first = 0; first < matrix.blocks(); first += matrix.blocks_together()) {
            size_t fullest = 0;
            for (size_t block = first; block < std::min(first + matrix.blocks_together(), matrix.blocks()); ++block) {
                fullest = std::max(fullest, gather_block(plain, matrix, panel, block).count);
            }
            bytes += value_bytes(plain.value_type, fullest);
        }
    }
    return align(at[3] + bytes) + alignment;
}

void pack(const PlainMatrix& plain, uint8_t* packed) {
    const size_t total = packed_size(plain);
    const PackedMatrix matrix = sizes_of(plain);
    size_t at[4];
    section_offsets(matrix, at);
    std::memset(packed, 0, total);
    size_t offset = 0;
    size_t stored = 0;
    for (size_t panel = 0; panel < matrix.panels(); ++panel) {
        if (plain.encoding == Encoding::bitmask) {
            std::memcpy(packed + at[1] + panel * sizeof offset, &offset, sizeof offset);
        }
        size_t fullest = 0;
        for (size_t block = 0; block < matrix.blocks(); ++block) {
            const Block gathered = gather_block(plain, matrix, panel, block);
            const size_t place = block % matrix.blocks_together();
            uint8_t* values = packed + at[3] + offset;
            for (size_t index = 0; index < gathered.count; ++index) {
                if (plain.value_type == ValueType::bf16) {
                    std::memcpy(values + 2 * index, &gathered.bits[index], sizeof(uint16_t));
                } else if (plain.value_type == ValueType::int8) {
                    values[index] = static_cast<uint8_t>(gathered.bits[index]);
                } else {
                    values[index] = static_cast<uint8_t>(values[index] | gathered.bits[index] << place * 4);
                }
            }
            if (plain.encoding == Encoding::bitmask) {
                std::memcpy(
                    packed + at[2] + (panel * matrix.blocks() + block) * matrix.mask_bytes(), &gathered.mask,
                    matrix.mask_bytes());
            }
            fullest = std::max(place == 0 ? 0 : fullest, gathered.count);
            if (place + 1 == matrix.blocks_together() || block + 1 == matrix.blocks()) {
                offset += value_bytes(plain.value_type, fullest);
            }
            stored += gathered.count;
        }
    }
    if (plain.encoding == Encoding::bitmask) {
        std::memcpy(packed + at[1] + matrix.panels() * sizeof offset, &offset, sizeof offset);
    }
    pack_scales(plain, matrix, packed + at[0]);
    write_header(matrix, stored, total, packed);
}

void unpack(const PackedMatrix& matrix, void* values, void* scales, const Threads& threads) {
    struct Unpacking {
        const PackedMatrix& matrix;
        uint8_t* values;
        uint8_t* scales;
    };
    Unpacking unpacking{matrix, static_cast<uint8_t*>(values), static_cast<uint8_t*>(scales)};
    threads.run(matrix.panels(), [](void* context, size_t panel) {
        const Unpacking& all = *static_cast<const Unpacking*>(context);
        if (all.values != nullptr) {
            unpack_panel(all.matrix, panel, all.values);
        }
        if (all.scales != nullptr) {
            unpack_scales(all.matrix, panel, all.scales);
        }
    }, &unpacking);
}

size_t expanded_size(const PackedMatrix& matrix) { return dense_bytes(dense_form(matrix)); }

void expand(const PackedMatrix& matrix, uint8_t* packed, const Threads& threads) {
    const PackedMatrix dense = dense_form(matrix);
    const size_t total = dense_bytes(dense), values = dense.panels() * dense.dense_panel_bytes();
    size_t at[4];
    section_offsets(dense, at);
    std::memset(packed, 0, at[3]);
    std::memcpy(packed + at[0], matrix.scales, matrix.panels() * matrix.panel_scale_bytes());
    write_header(dense, dense.panels() * dense.blocks() * dense.block_size(), total, packed);
    struct Expansion {
        const PackedMatrix& matrix;
        uint8_t* values;
    };
    Expansion expansion{matrix, packed + at[3]};
    threads.run(matrix.panels(), [](void* context, size_t panel) {
        const Expansion& all = *static_cast<const Expansion*>(context);
        expand_panel(all.matrix, panel, all.values + panel * all.matrix.dense_panel_bytes());
    }, &expansion);
    std::memset(packed + at[3] + values, 0, total - at[3] - values);
}

}  // namespace shearling
