#include "packed_matrix.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "half.hpp"

namespace shearling {
namespace {

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

size_t align(size_t offset) { return (offset + alignment - 1) / alignment * alignment; }

uint64_t load_u64(const uint8_t* bytes) {
    uint64_t value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

uint64_t load_mask(const uint8_t* bytes, size_t size) {
    uint64_t mask = 0;
    std::memcpy(&mask, bytes, size);
    return mask;
}

size_t scale_bytes(ScaleType type) { return type == ScaleType::none ? 0 : type == ScaleType::f32 ? 4 : 2; }

size_t block_bytes(ValueType type, size_t count) {
    return type == ValueType::bf16 ? 2 * count : type == ValueType::int8 ? count : (count + 1) / 2;
}

bool plausible_group(ValueType type, ScaleType scales, size_t group_size, size_t columns) {
    if (type == ValueType::bf16) {
        return scales == ScaleType::none && group_size == 0;
    }
    return scales != ScaleType::none && group_size > 0 && group_size <= columns &&
           (group_size % 4 == 0 || group_size == columns);
}

// Offsets of the sections follow from the sizes; `matrix` has all but its pointers.
void section_offsets(const PackedMatrix& matrix, size_t (&at)[4]) {
    const bool masked = matrix.encoding == Encoding::bitmask;
    at[0] = header_bytes;
    at[1] = align(at[0] + matrix.panels() * matrix.groups() * panel_rows * scale_bytes(matrix.scale_type));
    at[2] = align(at[1] + (masked ? (matrix.panels() + 1) * sizeof(uint64_t) : 0));
    at[3] = align(at[2] + (masked ? matrix.panels() * matrix.blocks() * matrix.mask_bytes() : 0));
}

bool finite_bf16(uint16_t bits) { return (bits & 0x7F80) != 0x7F80; }

bool finite_scale(const uint8_t* scale, ScaleType type) {
    if (type == ScaleType::f32) {
        uint32_t bits;
        std::memcpy(&bits, scale, sizeof bits);
        return (bits & 0x7F800000) != 0x7F800000;
    }
    uint16_t bits;
    std::memcpy(&bits, scale, sizeof bits);
    return (bits & 0x7C00) != 0x7C00;
}

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

const char* check_int4(const uint8_t* values, size_t count) {
    bool zero = false;
    for (size_t index = 0; index < count / 2; ++index) {
        zero |= (values[index] & 15) == 0 || values[index] >> 4 == 0;
    }
    if (count % 2 == 1) {
        zero |= (values[count / 2] & 15) == 0;
        if (values[count / 2] >> 4 != 0) {
            return "padding is not zero";
        }
    }
    return zero ? "a stored value is zero" : nullptr;
}

bool stored_zero(const PackedMatrix& matrix, const uint8_t* block, size_t position) {
    if (matrix.value_type == ValueType::bf16) {
        return block[2 * position] == 0 && block[2 * position + 1] == 0;
    }
    return matrix.value_type == ValueType::int8 ? block[position] == 0
                                                : (block[position / 2] >> (position % 2 * 4) & 15) == 0;
}

const char* check_padding(const PackedMatrix& matrix, uint64_t mask, uint64_t padding, const uint8_t* block) {
    if (matrix.encoding == Encoding::bitmask) {
        return (mask & padding) == 0 ? nullptr : "a mask keeps padding";
    }
    for (; padding != 0; padding &= padding - 1) {
        if (!stored_zero(matrix, block, static_cast<size_t>(__builtin_ctzll(padding)))) {
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
    for (size_t block = 0; block < matrix.blocks(); ++block) {
        uint64_t mask = ~uint64_t{0} >> (64 - matrix.block_size());
        if (masked) {
            mask = load_mask(matrix.panel_masks(panel) + block * matrix.mask_bytes(), matrix.mask_bytes());
        }
        const size_t count = static_cast<size_t>(__builtin_popcountll(mask));
        const size_t bytes = block_bytes(matrix.value_type, count);
        if (bytes > matrix.value_bytes - offset) {
            return "the masks keep more values than there are";
        }
        const uint8_t* values = matrix.values + offset;
        const char* fault = nullptr;
        if (ragged || block + 1 == matrix.blocks()) {
            fault = check_padding(matrix, mask, padding_bits(matrix, panel, block), values);
        }
        if (fault == nullptr && masked && matrix.value_type == ValueType::int4) {
            fault = check_int4(values, count);
        }
        if (fault != nullptr) {
            return fault;
        }
        offset += bytes;
        stored += count;
    }
    return check_values(matrix, matrix.values + start, offset - start);
}

bool all_zero(const uint8_t* first, const uint8_t* last) {
    return std::all_of(first, last, [](uint8_t byte) { return byte == 0; });
}

const char* check_scales(const PackedMatrix& matrix) {
    const size_t size = scale_bytes(matrix.scale_type);
    if (size == 0) {
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

// Gaps between sections, and the end.
const char* check_gaps(const PackedMatrix& matrix, size_t value_bytes) {
    const uint8_t* start = matrix.scales - header_bytes;
    const size_t scales_end =
        header_bytes + (matrix.scale_type == ScaleType::none ? 0 : matrix.panels() * matrix.groups() * panel_rows) *
                           scale_bytes(matrix.scale_type);
    const bool masked = matrix.encoding == Encoding::bitmask;
    const uint8_t* offsets_end = matrix.offsets + (masked ? (matrix.panels() + 1) * sizeof(uint64_t) : 0);
    const uint8_t* masks_end = matrix.masks + (masked ? matrix.panels() * matrix.blocks() * matrix.mask_bytes() : 0);
    const bool clean = all_zero(start + scales_end, matrix.offsets) && all_zero(offsets_end, matrix.masks) &&
                       all_zero(masks_end, matrix.values) &&
                       all_zero(matrix.values + value_bytes, start + matrix.total_bytes);
    return clean ? nullptr : "padding is not zero";
}

size_t bits_of(const PlainMatrix& plain, size_t row, size_t column) {
    if (row >= plain.rows || column >= plain.columns) {
        return 0;
    }
    const size_t index = row * plain.columns + column;
    if (plain.value_type == ValueType::bf16) {
        return static_cast<const uint16_t*>(plain.values)[index];
    }
    const size_t byte = static_cast<const uint8_t*>(plain.values)[index];
    return plain.value_type == ValueType::int4 ? byte & 15 : byte;
}

PackedMatrix sizes_of(const PlainMatrix& plain) {
    PackedMatrix matrix{};
    static_cast<MatrixForm&>(matrix) = plain;
    return matrix;
}

struct Block {
    uint64_t mask;
    size_t count;
    uint16_t bits[64];
};

Block gather_block(const PlainMatrix& plain, const PackedMatrix& matrix, size_t panel, size_t block) {
    Block gathered{};
    const size_t width = matrix.block_columns();
    for (size_t position = 0; position < matrix.block_size(); ++position) {
        const size_t bits = bits_of(plain, panel * panel_rows + position / width, block * width + position % width);
        if (bits != 0 || plain.encoding == Encoding::dense) {
            gathered.mask |= uint64_t{1} << position;
            gathered.bits[gathered.count++] = static_cast<uint16_t>(bits);
        }
    }
    return gathered;
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
    const size_t scale_count = plain.rows * sizes_of(plain).groups();
    for (size_t index = 0; index < scale_count; ++index) {
        if (!finite_scale(scales + index * size, plain.scale_type)) {
            return false;
        }
    }
    return true;
}

// Where the values of a panel start, as the matrix says; those behind the last panel end there.
size_t panel_start(const PackedMatrix& matrix, size_t panel) {
    return matrix.encoding == Encoding::dense ? panel * matrix.blocks() * matrix.dense_block_bytes()
                                              : load_u64(matrix.offsets + panel * sizeof(uint64_t));
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

std::vector<PanelShare> share_panels(const PackedMatrix& matrix, const Threads& threads) {
    constexpr size_t shares_of_a_thread = 4;
    const size_t panels = matrix.panels(), shares = std::min(panels, shares_of_a_thread * threads.count());
    std::vector<PanelShare> all;
    for (size_t share = 0; share < shares; ++share) {
        all.push_back({&matrix, share * panels / shares, (share + 1) * panels / shares});
    }
    return all;
}

void unpack_panel(const PackedMatrix& matrix, size_t panel, uint8_t* plain) {
    const size_t width = matrix.block_columns();
    const size_t value_size = matrix.value_type == ValueType::bf16 ? 2 : 1;
    const size_t first = panel * panel_rows, rows = std::min(panel_rows, matrix.rows - first);
    std::memset(plain + first * matrix.columns * value_size, 0, rows * matrix.columns * value_size);
    const uint8_t* stored = matrix.panel_values(panel);
    for (size_t block = 0; block < matrix.blocks(); ++block) {
        uint64_t mask = ~uint64_t{0} >> (64 - matrix.block_size());
        if (matrix.encoding == Encoding::bitmask) {
            mask = load_mask(matrix.panel_masks(panel) + block * matrix.mask_bytes(), matrix.mask_bytes());
        }
        size_t count = 0;
        for (; mask != 0; mask &= mask - 1, ++count) {
            const size_t position = static_cast<size_t>(__builtin_ctzll(mask));
            const size_t row = first + position / width;
            const size_t column = block * width + position % width;
            if (row >= matrix.rows || column >= matrix.columns) {
                continue;
            }
            uint8_t* place = plain + (row * matrix.columns + column) * value_size;
            if (matrix.value_type == ValueType::int4) {
                const uint8_t nibble = stored[count / 2] >> (count % 2 * 4) & 15;
                *place = static_cast<uint8_t>((nibble ^ 8) - 8);
            } else {
                std::memcpy(place, stored + count * value_size, value_size);
            }
        }
        stored += block_bytes(matrix.value_type, count);
    }
}

void unpack_scales(const PackedMatrix& matrix, size_t panel, uint8_t* scales) {
    const size_t size = scale_bytes(matrix.scale_type), groups = matrix.groups();
    const size_t first = panel * panel_rows, rows = std::min(panel_rows, matrix.rows - first);
    for (size_t row = 0; row < (size == 0 ? 0 : rows); ++row) {
        for (size_t group = 0; group < groups; ++group) {
            const size_t place = (panel * groups + group) * panel_rows + row;
            std::memcpy(scales + ((first + row) * groups + group) * size, matrix.scales + place * size, size);
        }
    }
}

size_t count_bits(uint64_t bits) { return static_cast<size_t>(__builtin_popcountll(bits)); }

template <ValueType type>
float stored_value(const uint8_t* stored, size_t place) {
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
        return static_cast<float>(((stored[place / 2] >> place % 2 * 4 & 15) ^ 8) - 8);
    }
}

float scale_of(const PackedMatrix& matrix, size_t row, size_t column) {
    if (matrix.scale_type == ScaleType::none) {
        return 1.0f;
    }
    const size_t place =
        (row / panel_rows * matrix.groups() + column / matrix.group_size) * panel_rows + row % panel_rows;
    if (matrix.scale_type == ScaleType::f32) {
        float scale;
        std::memcpy(&scale, matrix.scales + place * sizeof scale, sizeof scale);
        return scale;
    }
    uint16_t half;
    std::memcpy(&half, matrix.scales + place * sizeof half, sizeof half);
    return half_to_float(half);
}

template <ValueType type>
void read_row_of(const PackedMatrix& matrix, size_t row, float* target) {
    constexpr size_t width = type == ValueType::bf16 ? 2 : 4, size = panel_rows * width;
    const size_t panel = row / panel_rows, lane = row % panel_rows;
    const uint64_t all = ~uint64_t{0} >> (64 - size), before = (uint64_t{1} << lane * width) - 1;
    const bool masked = matrix.encoding == Encoding::bitmask;
    const uint8_t* masks = matrix.panel_masks(panel);
    const uint8_t* stored = matrix.panel_values(panel);
    float scale = scale_of(matrix, row, 0);
    for (size_t first = 0; first < matrix.columns; first += width) {
        if (matrix.groups() > 1) {
            scale = scale_of(matrix, row, first);  // groups are whole blocks
        }
        const uint64_t mask =
            masked ? load_mask(masks + first / width * matrix.mask_bytes(), matrix.mask_bytes()) : all;
        size_t place = masked ? count_bits(mask & before) : lane * width;
        const size_t count = std::min(width, matrix.columns - first);
        for (size_t column = 0; column < count; ++column) {
            const bool kept = (mask >> (lane * width + column) & 1) != 0;
            target[first + column] = kept ? stored_value<type>(stored, place) * scale : 0.0f;
            place += kept ? 1 : 0;
        }
        stored += block_bytes(type, masked ? count_bits(mask) : size);
    }
}

}  // namespace

const uint8_t* PackedMatrix::panel_values(size_t panel) const {
    return encoding == Encoding::dense ? values + panel * blocks() * dense_block_bytes()
                                       : values + load_u64(offsets + panel * sizeof(uint64_t));
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
    if (header.value_type < 1 || header.value_type > 3 || header.encoding > 1 || header.scale_type > 2) {
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

const char* validate_scales(const PackedMatrix& matrix) { return check_scales(matrix); }

const char* validate(const PackedMatrix& matrix, const Threads& threads) {
    if (const char* fault = check_scales(matrix)) {
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

size_t packed_size(const PlainMatrix& plain) {
    const bool sized = plain.rows > 0 && plain.rows <= max_size && plain.columns > 0 && plain.columns <= max_size;
    if (!sized || !plausible_group(plain.value_type, plain.scale_type, plain.group_size, plain.columns) ||
        !values_fit(plain)) {
        return 0;
    }
    const PackedMatrix matrix = sizes_of(plain);
    size_t at[4];
    section_offsets(matrix, at);
    size_t bytes = 0;
    for (size_t panel = 0; panel < matrix.panels(); ++panel) {
        for (size_t block = 0; block < matrix.blocks(); ++block) {
            bytes += block_bytes(plain.value_type, gather_block(plain, matrix, panel, block).count);
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
        for (size_t block = 0; block < matrix.blocks(); ++block) {
            const Block gathered = gather_block(plain, matrix, panel, block);
            uint8_t* values = packed + at[3] + offset;
            for (size_t index = 0; index < gathered.count; ++index) {
                if (plain.value_type == ValueType::bf16) {
                    std::memcpy(values + 2 * index, &gathered.bits[index], sizeof(uint16_t));
                } else if (plain.value_type == ValueType::int8) {
                    values[index] = static_cast<uint8_t>(gathered.bits[index]);
                } else {
                    values[index / 2] =
                        static_cast<uint8_t>(values[index / 2] | gathered.bits[index] << (index % 2 * 4));
                }
            }
            if (plain.encoding == Encoding::bitmask) {
                std::memcpy(
                    packed + at[2] + (panel * matrix.blocks() + block) * matrix.mask_bytes(), &gathered.mask,
                    matrix.mask_bytes());
            }
            offset += block_bytes(plain.value_type, gathered.count);
            stored += gathered.count;
        }
    }
    if (plain.encoding == Encoding::bitmask) {
        std::memcpy(packed + at[1] + matrix.panels() * sizeof offset, &offset, sizeof offset);
    }
    const size_t size = scale_bytes(plain.scale_type);
    const size_t groups = matrix.groups();
    for (size_t row = 0; row < (size == 0 ? 0 : plain.rows); ++row) {
        for (size_t group = 0; group < groups; ++group) {
            const size_t place = (row / panel_rows * groups + group) * panel_rows + row % panel_rows;
            std::memcpy(
                packed + at[0] + place * size,
                static_cast<const uint8_t*>(plain.scales) + (row * groups + group) * size, size);
        }
    }
    Header header{};
    std::memcpy(header.magic, magic, sizeof header.magic);
    header.version = 1;
    header.value_type = static_cast<uint32_t>(plain.value_type);
    header.encoding = static_cast<uint32_t>(plain.encoding);
    header.scale_type = static_cast<uint32_t>(plain.scale_type);
    header.rows = plain.rows;
    header.columns = plain.columns;
    header.group_size = plain.group_size;
    header.stored = stored;
    header.total = total;
    header.scales_at = at[0];
    header.offsets_at = at[1];
    header.masks_at = at[2];
    header.values_at = at[3];
    std::memcpy(packed, &header, sizeof header);
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

void read_row(const PackedMatrix& matrix, size_t row, float* target) {
    switch (matrix.value_type) {
        case ValueType::bf16: return read_row_of<ValueType::bf16>(matrix, row, target);
        case ValueType::int8: return read_row_of<ValueType::int8>(matrix, row, target);
        case ValueType::int4: return read_row_of<ValueType::int4>(matrix, row, target);
    }
}

}  // namespace shearling
