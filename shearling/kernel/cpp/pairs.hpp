// Weights of which no row has more than two in four columns (2:4 sparsity), as AVX2 multiplies them: written into
// memory when weights are taken, and into no file. Each row has exactly two numbers of every four columns, zeros among
// them where fewer are stored, so that nothing is counted on the way, and a product chooses the two activations that it
// needs instead of putting zeros between weights.
//
// int8  a block: its mask, with two columns of each row; then the 16 rows' two bytes
// int4  32 columns, first of rows 0 to 7, then of rows 8 to 15: columns [8 rows][4], numbers [2][8 rows][4] bytes. Of
//       every eight columns a row has four numbers, two of the first four columns and two of the others. Byte j of the
//       columns has, of eight columns i, in the bits 2 i and 2 i + 1 which of its four columns number j is from. The
//       numbers of eight columns i are the nibbles i % 2 of the bytes i / 2, plus `raised_pairs`.
#pragma once

#include "kernels.hpp"
#include "packed_matrix.hpp"
#include "threads.hpp"

namespace shearling {

constexpr size_t paired_block_bytes = 8 + 2 * panel_rows;
constexpr size_t span_columns = 32;
constexpr size_t span_half_bytes = 3 * 32;
constexpr size_t paired_span_bytes = 2 * span_half_bytes;
constexpr int raised_pairs = 8;

// Whether kernels hold a matrix whose header was read in pairs: those that prefer them, where it is int8, or int4 in
// whole 32 columns, and takes no more than a quarter more memory so than it is packed.
bool held_in_pairs(const PackedMatrix& matrix, const KernelSet& kernels);

// Size of such a matrix in pairs, with its scales.
size_t paired_size(const PackedMatrix& matrix);

// Writes paired_size(matrix) bytes, of a matrix that passed `validate`, and gives the matrix that they are.
PackedMatrix pair(const PackedMatrix& matrix, uint8_t* target, const Threads& threads);

// As `read_row`, of such a matrix.
void read_paired_row(const PackedMatrix& pairs, size_t row, float* target);

}  // namespace shearling
