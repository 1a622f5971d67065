#include "pairs.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "packed_layout.hpp"

namespace shearling {
namespace {

constexpr size_t block_columns = 4;
constexpr size_t chunk_blocks = 2;  // of int4, which share bytes in a file, too

size_t paired_panel_bytes(const PackedMatrix& matrix) {
    return matrix.value_type == ValueType::int8 ? matrix.blocks() * paired_block_bytes
                                                : matrix.columns / span_columns * paired_span_bytes;
}

// What becomes of a row that stores some of four columns: the two that it has then, in order, and which of them it
// stored.
struct Filled {
    uint8_t columns[2];
    bool stored[2];
};

constexpr std::array<Filled, 16> make_filled() {
    std::array<Filled, 16> all{};
    for (unsigned stored = 0; stored < 16; ++stored) {
        unsigned filled = stored, count = 0;
        for (unsigned bits = stored; bits != 0; bits &= bits - 1) {
            ++count;
        }
        for (; count < 2; ++count) {
            filled |= ~filled & (filled + 1);
        }
        unsigned place = 0;
        for (unsigned column = 0; column < block_columns; ++column) {
            if ((filled >> column & 1) != 0 && place < 2) {
                all[stored].columns[place] = static_cast<uint8_t>(column);
                all[stored].stored[place] = (stored >> column & 1) != 0;
                ++place;
            }
        }
    }
    return all;
}

constexpr std::array<Filled, 16> filled_of = make_filled();

// Calls `visit(row, place, column, bits)` for both numbers of every row of a block, in order.
template <class Visit>
void visit_pairs(
    const PackedMatrix& matrix, const BlockGroup& group, size_t block, const uint8_t* stored, const Visit& visit) {
    size_t taken = 0;
    for (size_t row = 0; row < panel_rows; ++row) {
        const Filled& filled = filled_of[group.masks[block] >> row * block_columns & 15];
        for (size_t place = 0; place < 2; ++place) {
            uint8_t bits = 0;
            if (filled.stored[place]) {
                bits = matrix.value_type == ValueType::int8 ? stored[taken] : nibble_at(stored, block, taken);
                ++taken;
            }
            visit(row, place, filled.columns[place], bits);
        }
    }
}

void pair_bytes(const PackedMatrix& matrix, size_t panel, uint8_t* target) {
    const uint8_t* stored = matrix.panel_values(panel);
    for (size_t block = 0; block < matrix.blocks(); ++block, target += paired_block_bytes) {
        const BlockGroup group = group_at(matrix, panel, block);
        uint64_t mask = 0;
        visit_pairs(matrix, group, 0, stored, [&](size_t row, size_t place, uint8_t column, uint8_t bits) {
            mask |= uint64_t{1} << (row * block_columns + column);
            target[sizeof mask + 2 * row + place] = bits;
        });
        std::memcpy(target, &mask, sizeof mask);
        stored += group.stored[0];
    }
}

// Where a row of a chunk of eight columns has its numbers.
struct ChunkPlace {
    uint8_t* columns;
    uint8_t* numbers;
    int column_shift;
    int number_shift;
};

ChunkPlace chunk_place(uint8_t* panel, size_t chunk, size_t row) {
    constexpr size_t span_chunks = 4;
    uint8_t* const half =
        panel + chunk / span_chunks * paired_span_bytes + row / (panel_rows / 2) * span_half_bytes;
    const size_t index = chunk % span_chunks, at = row % (panel_rows / 2) * 4;
    return {
        half + at, half + 32 * (1 + index / 2) + at, static_cast<int>(2 * index), static_cast<int>(index % 2 * 4)};
}

void pair_nibbles(const PackedMatrix& matrix, size_t panel, uint8_t* target) {
    std::memset(target, 0, paired_panel_bytes(matrix));
    const uint8_t* stored = matrix.panel_values(panel);
    for (size_t first = 0; first < matrix.blocks(); first += chunk_blocks) {
        const BlockGroup group = group_at(matrix, panel, first);
        for (size_t block = 0; block < chunk_blocks; ++block) {
            visit_pairs(matrix, group, block, stored, [&](size_t row, size_t place, uint8_t column, uint8_t bits) {
                const ChunkPlace at = chunk_place(target, first / chunk_blocks, row);
                const size_t byte = 2 * block + place;
                const int number = signed_nibble(bits) + raised_pairs;
                at.columns[byte] = static_cast<uint8_t>(at.columns[byte] | column << at.column_shift);
                at.numbers[byte] = static_cast<uint8_t>(at.numbers[byte] | number << at.number_shift);
            });
        }
        stored += group.fullest();
    }
}

}  // namespace

bool held_in_pairs(const PackedMatrix& matrix, const KernelSet& kernels) {
    if (!kernels.prefers_pairs || matrix.encoding != Encoding::bitmask || matrix.value_type == ValueType::bf16 ||
        (matrix.value_type == ValueType::int4 && matrix.columns % span_columns != 0) ||
        paired_size(matrix) > matrix.total_bytes + matrix.total_bytes / 4) {
        return false;
    }
    constexpr uint64_t ones = 0x1111111111111111;
    const size_t blocks = matrix.panels() * matrix.blocks();
    for (size_t block = 0; block < blocks; ++block) {
        // How many of four columns each row stores, in four bits a row. One more than three or four has a third bit.
        const uint64_t mask = load_u64(matrix.masks + block * sizeof(uint64_t));
        const uint64_t of_two = (mask & 5 * ones) + (mask >> 1 & 5 * ones);
        const uint64_t of_four = (of_two & 3 * ones) + (of_two >> 2 & 3 * ones);
        if (((of_four + ones) & 4 * ones) != 0) {
            return false;
        }
    }
    return true;
}

size_t paired_size(const PackedMatrix& matrix) {
    return align(matrix.panels() * matrix.panel_scale_bytes()) + align(matrix.panels() * paired_panel_bytes(matrix));
}

PackedMatrix pair(const PackedMatrix& matrix, uint8_t* target, const Threads& threads) {
    const size_t scale_bytes = matrix.panels() * matrix.panel_scale_bytes(), size = paired_size(matrix);
    PackedMatrix pairs{};
    static_cast<MatrixForm&>(pairs) = matrix;
    pairs.encoding = Encoding::pairs;
    pairs.stored = matrix.stored;
    pairs.total_bytes = size;
    pairs.scales = target;
    pairs.values = target + align(scale_bytes);
    pairs.value_bytes = matrix.panels() * paired_panel_bytes(matrix);
    std::memcpy(target, matrix.scales, scale_bytes);
    std::memset(target + scale_bytes, 0, align(scale_bytes) - scale_bytes);
    std::memset(target + align(scale_bytes) + pairs.value_bytes, 0, size - align(scale_bytes) - pairs.value_bytes);
    struct Pairing {
        const PackedMatrix& matrix;
        uint8_t* values;
    };
    Pairing pairing{matrix, target + align(scale_bytes)};
    threads.run(matrix.panels(), [](void* context, size_t panel) {
        const Pairing& all = *static_cast<const Pairing*>(context);
        uint8_t* const values = all.values + panel * paired_panel_bytes(all.matrix);
        all.matrix.value_type == ValueType::int8 ? pair_bytes(all.matrix, panel, values)
                                                 : pair_nibbles(all.matrix, panel, values);
    }, &pairing);
    return pairs;
}

void read_paired_row(const PackedMatrix& pairs, size_t row, float* target) {
    const size_t panel = row / panel_rows, lane = row % panel_rows;
    auto* const values = const_cast<uint8_t*>(pairs.panel_values(panel));  // `chunk_place` serves who writes, too
    std::fill(target, target + pairs.columns, 0.0f);
    const auto add = [&](size_t column, int number) {
        if (number != 0) {  // what is not stored has no sign
            const size_t group = pairs.groups() == 1 ? 0 : column / pairs.group_size;
            target[column] = static_cast<float>(number) * scale_at(pairs, panel, group, lane);
        }
    };
    for (size_t block = 0; block < pairs.blocks(); ++block) {
        if (pairs.value_type == ValueType::int8) {
            const uint8_t* const bytes = values + block * paired_block_bytes;
            uint64_t mask = load_u64(bytes) >> lane * block_columns & 15;
            for (size_t place = 0; place < 2; ++place, mask &= mask - 1) {
                const auto column = static_cast<size_t>(__builtin_ctzll(mask));
                add(block * block_columns + column, static_cast<int8_t>(bytes[sizeof mask + 2 * lane + place]));
            }
            continue;
        }
        const ChunkPlace at = chunk_place(values, block / chunk_blocks, lane);
        for (size_t place = 0; place < 2; ++place) {
            const size_t byte = block % chunk_blocks * 2 + place;
            const size_t column = at.columns[byte] >> at.column_shift & 3;
            add(block * block_columns + column, (at.numbers[byte] >> at.number_shift & 15) - raised_pairs);
        }
    }
}

}  // namespace shearling
