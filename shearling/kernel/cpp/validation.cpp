// What must hold of a packed matrix before a kernel runs on it; the header was checked when it was read.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "packed_layout.hpp"

namespace shearling {
namespace {

// Bits of the positions of a block that lie in the padding.
uint64_t padding_bits(const PackedMatrix& matrix, size_t panel, size_t block) {
    const size_t width = matrix.block_columns();
    uint64_t padding = 0;
    for (size_t row = 0; row < panel_rows; ++row) {
        for (size_t column = 0; column < width; ++column) {
            const bool outside = panel * panel_rows + row >= matrix.rows || block * width + column >= matrix.columns;
            padding |= uint64_t{outside} << (row * width + column);
        }
    }
    return padding;
}

// Stored values: finite, and where only kept ones are stored none is zero. Simple loops, which the compiler turns into
// vectors.
const char* check_bf16(const uint8_t* values, size_t count, bool masked) {
    bool zero = false, infinite = false;
    for (size_t index = 0; index < count; ++index) {
        uint16_t bits;
        std::memcpy(&bits, values + 2 * index, sizeof bits);
        zero |= bits == 0;
        infinite |= !finite_bf16(bits);
    }
    return infinite ? "NaN or infinity in the values" : masked && zero ? "a stored value is zero" : nullptr;
}

const char* check_int8(const uint8_t* values, size_t count) {
    bool zero = false;
    for (size_t index = 0; index < count; ++index) {
        zero |= values[index] == 0;
    }
    return zero ? "a stored value is zero" : nullptr;
}

// Nibbles of two blocks: those of stored values are not zero, unless zeros are stored too, and all others are.
const char* check_int4(const BlockGroup& group, const uint8_t* values, bool masked) {
    const size_t both = std::min(group.stored[0], group.stored[1]), fuller = group.stored[1] > group.stored[0] ? 1 : 0;
    bool zero = false, other = false;
    for (size_t place = 0; place < (masked ? both : 0); ++place) {
        zero |= (values[place] & 15) == 0 || values[place] >> 4 == 0;
    }
    for (size_t place = both; place < group.fullest(); ++place) {
        zero |= nibble_at(values, fuller, place) == 0;
        other |= nibble_at(values, 1 - fuller, place) != 0;
    }
    return other ? "padding is not zero" : masked && zero ? "a stored value is zero" : nullptr;
}

// `place`: of the block among those that share bytes.
bool stored_zero(const PackedMatrix& matrix, const uint8_t* values, size_t place, size_t position) {
    if (matrix.value_type == ValueType::bf16) {
        return values[2 * position] == 0 && values[2 * position + 1] == 0;
    }
    return matrix.value_type == ValueType::int8 ? values[position] == 0 : nibble_at(values, place, position) == 0;
}

const char* check_padding(
    const PackedMatrix& matrix, uint64_t mask, uint64_t padding, const uint8_t* values, size_t place) {
    if (matrix.encoding == Encoding::bitmask) {
        return (mask & padding) == 0 ? nullptr : "a mask keeps padding";
    }
    for (; padding != 0; padding &= padding - 1) {
        if (!stored_zero(matrix, values, place, static_cast<size_t>(__builtin_ctzll(padding)))) {
            return "padding is not zero";
        }
    }
    return nullptr;
}

const char* check_values(const PackedMatrix& matrix, const uint8_t* values, size_t bytes) {
    const bool masked = matrix.encoding == Encoding::bitmask;
    if (matrix.value_type == ValueType::bf16) {
        return check_bf16(values, bytes / 2, masked);
    }
    return masked && matrix.value_type == ValueType::int8 ? check_int8(values, bytes) : nullptr;
}

const char* check_panel(const PackedMatrix& matrix, size_t panel, size_t& offset, size_t& stored) {
    const bool masked = matrix.encoding == Encoding::bitmask;
    const bool ragged = panel + 1 == matrix.panels() && matrix.rows % panel_rows != 0;
    const size_t start = offset;
    for (size_t first = 0; first < matrix.blocks(); first += matrix.blocks_together()) {
        const BlockGroup group = group_at(matrix, panel, first);
        const size_t bytes = value_bytes(matrix.value_type, group.fullest());
        if (bytes > matrix.value_bytes - offset) {
            return "the masks keep more values than there are";
        }
        const uint8_t* values = matrix.values + offset;
        const char* fault = nullptr;
        for (size_t place = 0; place < group.count && fault == nullptr; ++place) {
            const size_t block = first + place;
            if (ragged || block + 1 == matrix.blocks()) {
                fault = check_padding(matrix, group.masks[place], padding_bits(matrix, panel, block), values, place);
            }
            stored += group.stored[place];
        }
        if (fault == nullptr && matrix.value_type == ValueType::int4) {
            fault = check_int4(group, values, masked);
        }
        if (fault != nullptr) {
            return fault;
        }
        offset += bytes;
    }
    return check_values(matrix, matrix.values + start, offset - start);
}

// Gaps between sections, and the end.
const char* check_gaps(const PackedMatrix& matrix, size_t value_bytes) {
    const uint8_t* start = matrix.scales - header_bytes;
    const size_t scales_end = header_bytes + matrix.panels() * matrix.panel_scale_bytes();
    const bool masked = matrix.encoding == Encoding::bitmask;
    const uint8_t* offsets_end = matrix.offsets + (masked ? (matrix.panels() + 1) * sizeof(uint64_t) : 0);
    const uint8_t* masks_end = matrix.masks + (masked ? matrix.panels() * matrix.blocks() * matrix.mask_bytes() : 0);
    const bool clean = all_zero(start + scales_end, matrix.offsets) && all_zero(offsets_end, matrix.masks) &&
                       all_zero(masks_end, matrix.values) &&
                       all_zero(matrix.values + value_bytes, start + matrix.total_bytes);
    return clean ? nullptr : "padding is not zero";
}

// Panels that one thread checks, what they store, and what is wrong with the first that is damaged.
struct PanelShare {
    const PackedMatrix* matrix;
    size_t first, last;
    size_t stored = 0;
    const char* fault = nullptr;

    void check() {
        for (size_t panel = first; panel < last && fault == nullptr; ++panel) {
            size_t offset = panel_start(*matrix, panel);
            if (offset > matrix->value_bytes) {
                fault = "the masks keep more values than there are";
                return;
            }
            fault = check_panel(*matrix, panel, offset, stored);
            if (fault == nullptr && offset != panel_start(*matrix, panel + 1)) {
                fault = "panel offsets disagree with the masks";
            }
        }
    }
};

// Scales of a panel stored as i8: as packing would store them, so that they are halves, too.
const char* check_i8_scales(const PackedMatrix& matrix, size_t panel) {
    const uint8_t* scales = matrix.panel_scales(panel);
    float factors[panel_rows];
    std::memcpy(factors, scales, sizeof factors);
    int divisors[panel_rows] = {};
    bool exact = true, in_range = true;
    for (size_t group = 0; group < matrix.groups(); ++group) {
        for (size_t row = 0; row < panel_rows; ++row) {
            const int byte = static_cast<int8_t>(scales[i8_scales_at + group * panel_rows + row]);
            in_range &= byte >= -most_i8;
            divisors[row] = divisors[row] == 1 ? 1 : std::gcd(divisors[row], byte);
            exact &= byte == 0 || is_half(factors[row] * static_cast<float>(byte));
        }
    }
    for (size_t row = 0; row < panel_rows; ++row) {
        if (panel * panel_rows + row >= matrix.rows && (divisors[row] != 0 || factors[row] != 0.0f)) {
            return "padding is not zero";
        }
        const bool no_scales = divisors[row] == 0 && factors[row] == 0.0f && !std::signbit(factors[row]);
        const bool shortest = divisors[row] == 1 && factors[row] > 0.0f && is_half(factors[row]);
        in_range &= no_scales || shortest;
    }
    return exact && in_range ? nullptr : "scales are not the bytes and factors of halves";
}

std::vector<PanelShare> share_panels(const PackedMatrix& matrix, const Threads& threads) {
    constexpr size_t shares_of_a_thread = 4;
    const size_t panels = matrix.panels(), shares = std::min(panels, shares_of_a_thread * threads.count());
    std::vector<PanelShare> all;
    for (size_t share = 0; share < shares; ++share) {
        all.push_back({&matrix, share * panels / shares, (share + 1) * panels / shares});
    }
    return all;
}

}  // namespace

const char* validate_scales(const PackedMatrix& matrix) {
    const size_t size = scale_bytes(matrix.scale_type);
    if (size == 0) {
        return nullptr;
    }
    if (matrix.scale_type == ScaleType::i8) {
        for (size_t panel = 0; panel < matrix.panels(); ++panel) {
            if (const char* fault = check_i8_scales(matrix, panel)) {
                return fault;
            }
        }
        return nullptr;
    }
    for (size_t panel = 0; panel < matrix.panels(); ++panel) {
        for (size_t group = 0; group < matrix.groups(); ++group) {
            for (size_t row = 0; row < panel_rows; ++row) {
                const uint8_t* scale = matrix.scales + ((panel * matrix.groups() + group) * panel_rows + row) * size;
                if (!finite_scale(scale, matrix.scale_type)) {
                    return "NaN or infinity in the scales";
                }
                if (panel * panel_rows + row >= matrix.rows && !all_zero(scale, scale + size)) {
                    return "padding is not zero";
                }
            }
        }
    }
    return nullptr;
}

const char* validate(const PackedMatrix& matrix, const Threads& threads) {
    if (const char* fault = validate_scales(matrix)) {
        return fault;
    }
    const size_t end = panel_start(matrix, matrix.panels());
    if (panel_start(matrix, 0) != 0) {
        return "panel offsets disagree with the masks";
    }
    std::vector<PanelShare> shares = share_panels(matrix, threads);
    threads.run(shares.size(), [](void* context, size_t index) {
        static_cast<PanelShare*>(context)[index].check();
    }, shares.data());
    size_t stored = 0;
    for (const PanelShare& share : shares) {
        if (share.fault != nullptr) {
            return share.fault;
        }
        stored += share.stored;
    }
    if (stored != matrix.stored || align(end) != align(matrix.value_bytes) || matrix.value_bytes - end >= alignment) {
        return "the header promises another number of values";
    }
    return check_gaps(matrix, end);
}

}  // namespace shearling
