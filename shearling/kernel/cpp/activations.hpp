// Rows of activations, arranged for the kernels.
//
// Rows go in tiles of `tile` rows (the last may be shorter). Within a tile, what a kernel reads for one block of
// weights lies together: [blocks][rows of the tile][terms][4 bytes]. Four bytes are four int8, one f32 or two bf16.
//
//   fixed16   x = scale * (256 high + low), one scale per row; terms: high, low
//   grouped8  x = scale * q, one scale for every 32 columns of a row; one term
//   wide32    x itself; terms: the f32 of either column of a block of bf16 weights
//   once16    x rounded to bf16; one term, the pair of a block's columns
//   plain32   the caller's own f32 rows, not arranged
//
// Integer weights are multiplied as unsigned bytes, w + 128; `sums` holds -128 times the sum of the activations of a
// segment, with which accumulators start: [segments][rows of the tile][terms] for each tile.
//
// Tile registers (AMX) multiply 16 blocks of weights at once, by two registers of activations of 16 rows of 64 bytes.
// Here `blocks` counts such 16; a tile has all its rows, even where the activations end earlier:
// [blocks][2 registers][16 rows][64 bytes].
//
//   tiled_fixed16  as fixed16, with a scale for every segment of a row; registers: high, low of the same 16 rows
//   tiled_once16   as once16; registers: rows 0 to 15 and 16 to 31 of the tile. Integer weights meet it scaled, in bf16
#pragma once

#include <cstddef>
#include <cstdint>

namespace shearling {

enum class Form { fixed16, grouped8, wide32, once16, plain32, tiled_fixed16, tiled_once16 };

constexpr size_t activation_group = 32;

struct Activations {
    Form form;
    size_t rows;
    size_t columns;
    size_t tile;
    size_t blocks;
    size_t segment_blocks;  // blocks that share a sum: of a group of weights (fixed16), of 32 columns (grouped8), of
                            // what both share (tiled)
    const float* plain;
    size_t plain_stride;
    uint8_t* terms;
    float* scales;  // fixed16: [rows]; grouped8, tiled_fixed16: [segments][rows of the tile] for each tile
    int32_t* sums;

    bool tiled() const { return form == Form::tiled_fixed16 || form == Form::tiled_once16; }
    size_t terms_per_block() const { return form == Form::grouped8 || form == Form::once16 ? 1 : 2; }
    // What a row takes up for a block.
    size_t block_bytes() const {
        return form == Form::tiled_fixed16 ? 128 : form == Form::tiled_once16 ? 64 : terms_per_block() * 4;
    }
    size_t segments() const { return segment_blocks == 0 ? 0 : (blocks + segment_blocks - 1) / segment_blocks; }
    size_t tiles() const { return (rows + tile - 1) / tile; }
    size_t tile_rows(size_t index) const { return index + 1 < tiles() ? tile : rows - index * tile; }
    const uint8_t* tile_terms(size_t index) const { return terms + index * tile * blocks * block_bytes(); }
    const int32_t* tile_sums(size_t index) const { return sums + index * tile * segments() * terms_per_block(); }
    const float* tile_scales(size_t index) const {
        return form == Form::fixed16 ? scales + index * tile : scales + index * tile * segments();
    }

    size_t stored_rows() const { return tiled() ? tiles() * tile : rows; }
    size_t term_bytes() const { return form == Form::plain32 ? 0 : stored_rows() * blocks * block_bytes(); }
    size_t scale_count() const {
        return form == Form::fixed16                                   ? rows
               : form == Form::grouped8 || form == Form::tiled_fixed16 ? stored_rows() * segments()
                                                                       : 0;
    }
    size_t sum_count() const {
        return form == Form::fixed16 || form == Form::grouped8 ? rows * segments() * terms_per_block() : 0;
    }
};

}  // namespace shearling
