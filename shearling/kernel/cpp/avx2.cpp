// Kernels for AVX2 with FMA: processors from 2013 on that have no AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"
#include "scales.hpp"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt,bmi2")

namespace shearling {
namespace {

inline __attribute__((always_inline)) __m256i add_products(__m256i sum, __m256i weights, __m256i activations) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(weights, activations));
}

#include "avx2_panels.inc"

// Nibbles as what they mean plus 8: unsigned bytes, of which four products with signed ones fit 16 bits many times.
template <class Source>
struct AboveZero {
    static constexpr size_t blocks_at_once = Source::blocks_at_once;
    Source source;

    INLINE void take(Block (&blocks)[blocks_at_once]) {
        source.take(blocks);
        for (Block& block : blocks) {
            block = above_zero(block);
        }
    }
};

// The same of signed bytes.
struct BytesAboveZero {
    static constexpr size_t blocks_at_once = 1;
    DenseBytes source;

    INLINE void take(Block (&blocks)[1]) {
        source.take(blocks);
        blocks[0] = each(blocks[0], [](__m256i half) { return _mm256_add_epi8(half, _mm256_set1_epi8(8)); });
    }
};

constexpr size_t grouped8_rows = 4;

// Weights of four bits meet activations of eight. Sums of 16 bits hold the products of a group of activations:
// 8 blocks * 2 * 15 * 127 < 2^15. `terms` are [blocks][stride bytes], four bytes a row.
template <int rows, class Source>
__attribute__((noinline)) void multiply_grouped8_rows(
    const PackedMatrix& matrix, size_t panel, Source source, const Activations& x, size_t tile, size_t first,
    const Output& output) {
    static_assert(activation_group / 4 * 2 * 15 * 127 < 1 << 15, "sums of 16 bits hold a group of activations");
    const size_t blocks = matrix.blocks(), tile_rows = x.tile_rows(tile);
    const size_t group_blocks = matrix.groups() == 1 ? blocks : matrix.group_size / 4;
    const uint8_t* terms = x.tile_terms(tile) + 4 * first;
    const float* scales = x.tile_scales(tile) + first;
    const int32_t* sums = x.tile_sums(tile) + first;
    const __m256i ones = _mm256_set1_epi16(1);
    Sixteen result[rows];
    FOR_ROWS {
        result[row] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    }
    size_t group = 0, group_stop = group_blocks;
    for (size_t block = 0; block < blocks; scales += tile_rows, sums += tile_rows) {
        if (block == group_stop) {
            ++group;
            group_stop += group_blocks;
        }
        const size_t stop = block + x.segment_blocks < blocks ? block + x.segment_blocks : blocks;
        __m256i lower[rows], upper[rows];
        FOR_ROWS {
            lower[row] = upper[row] = _mm256_setzero_si256();
        }
        for (; block < stop; block += Source::blocks_at_once) {
            Block weights[Source::blocks_at_once];
            source.take(weights);
            for (const Block& weight : weights) {
                FOR_ROWS {
                    int32_t four;
                    __builtin_memcpy(&four, terms + 4 * row, 4);
                    const __m256i activations = _mm256_set1_epi32(four);
                    lower[row] = _mm256_add_epi16(lower[row], _mm256_maddubs_epi16(weight.first, activations));
                    upper[row] = _mm256_add_epi16(upper[row], _mm256_maddubs_epi16(weight.second, activations));
                }
                terms += 4 * tile_rows;
            }
        }
        const Sixteen weight_scales = load_scales(matrix, panel, group);
        FOR_ROWS {
            // What is added to every weight is 8 here, where the activations' sums are made for 128.
            const __m256i start = _mm256_set1_epi32(sums[row] / 16);
            const __m256 scale = _mm256_set1_ps(scales[row]);
            const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(lower[row], ones), start);
            const __m256i high = _mm256_add_epi32(_mm256_madd_epi16(upper[row], ones), start);
            result[row].lower = _mm256_fmadd_ps(
                _mm256_mul_ps(_mm256_cvtepi32_ps(low), weight_scales.lower), scale, result[row].lower);
            result[row].upper = _mm256_fmadd_ps(
                _mm256_mul_ps(_mm256_cvtepi32_ps(high), weight_scales.upper), scale, result[row].upper);
        }
    }
    const size_t left = matrix.rows - panel * panel_rows;
    FOR_ROWS {
        write_row(
            result[row], output, tile * x.tile + first + static_cast<size_t>(row), panel * panel_rows,
            left < panel_rows ? left : panel_rows);
    }
}

template <class Source>
void multiply_grouped8_panel(
    const PackedMatrix& matrix, size_t panel, Source source, const Activations& x, const Output& output) {
    for (size_t tile = 0; tile < x.tiles(); ++tile) {
        for (size_t first = 0; first < x.tile_rows(tile); first += grouped8_rows) {
            switch (x.tile_rows(tile) - first) {
                case 1: multiply_grouped8_rows<1>(matrix, panel, source, x, tile, first, output); break;
                case 2: multiply_grouped8_rows<2>(matrix, panel, source, x, tile, first, output); break;
                case 3: multiply_grouped8_rows<3>(matrix, panel, source, x, tile, first, output); break;
                default: multiply_grouped8_rows<4>(matrix, panel, source, x, tile, first, output);
            }
        }
    }
}

void multiply_grouped8_panel(
    const PackedMatrix& matrix, size_t panel, const Activations& x, const Output& output, uint8_t* scratch) {
    const uint8_t *masks = matrix.panel_masks(panel), *values = matrix.panel_values(panel);
    if (x.rows > grouped8_rows || matrix.blocks() % 2 != 0) {
        expand_panel(matrix, panel, scratch);
        multiply_grouped8_panel(matrix, panel, BytesAboveZero{{scratch}}, x, output);
    } else if (masks == nullptr) {
        multiply_grouped8_panel(matrix, panel, AboveZero<DenseNibbles>{{values}}, x, output);
    } else {
        multiply_grouped8_panel(matrix, panel, AboveZero<SparseNibbles>{{masks, values}}, x, output);
    }
}

void multiply(
    const PackedMatrix& matrix, const Activations& x, size_t first, size_t last, const Output& output,
    uint8_t* scratch) {
    if (x.form == Form::plain32) {
        return multiply_exact(matrix, x, first, last, output, scratch);
    }
    for (size_t panel = first; panel < last; ++panel) {
        if (x.form == Form::grouped8) {
            multiply_grouped8_panel(matrix, panel, x, output, scratch);
        } else {
            multiply_fixed16_panel(matrix, panel, x, output, scratch);
        }
    }
}

}  // namespace

const KernelSet avx2_kernels = {
    "avx2",
    forms(Form::fixed16),
    arrange_integers,
    multiply,
    normalise,
    activate,
    &attention_kernels,
    nullptr,
    forms(Form::grouped8)};

}  // namespace shearling

#pragma GCC pop_options

#endif
