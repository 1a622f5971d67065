// Kernels for AVX2 with the dot products of AVX-VNNI: Alder Lake, Zen 5 and later, also where AVX-512 is switched off.
#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"
#include "scales.hpp"

// The same products in the encoding of AVX-512, for tests on processors that have no other.
#pragma GCC push_options
#ifdef SHEARLING_VNNI_OF_AVX512
#pragma GCC target("avx2,fma,f16c,popcnt,bmi2,avx512vnni,avx512vl")
#define DOT_PAIRS _mm256_dpwssd_epi32
#define DOT_BYTES _mm256_dpbusd_epi32
#else
#pragma GCC target("avx2,fma,f16c,popcnt,bmi2,avxvnni")
#define DOT_PAIRS _mm256_dpwssd_avx_epi32
#define DOT_BYTES _mm256_dpbusd_avx_epi32
#endif

namespace shearling {
namespace {

inline __attribute__((always_inline)) __m256i add_products(__m256i sum, __m256i weights, __m256i activations) {
    return DOT_PAIRS(sum, weights, activations);
}

#include "avx2_panels.inc"

constexpr size_t grouped8_rows = 6;

// Nibbles as signed bytes.
template <class Source>
struct Signed {
    static constexpr size_t blocks_at_once = Source::blocks_at_once;
    Source source;

    INLINE void take(Block (&blocks)[blocks_at_once]) {
        source.take(blocks);
        for (Block& block : blocks) {
            block = with_sign(block);
        }
    }
};

// `terms` are [blocks][stride bytes], four bytes a row.
template <int rows, class Source>
__attribute__((noinline)) void multiply_grouped8_rows(
    const PackedMatrix& matrix, size_t panel, Source source, const Activations& x, size_t tile, size_t first,
    const Output& output) {
    const size_t blocks = matrix.blocks(), tile_rows = x.tile_rows(tile);
    const size_t group_blocks = matrix.groups() == 1 ? blocks : matrix.group_size / 4;
    const uint8_t* terms = x.tile_terms(tile) + 4 * first;
    const float* scales = x.tile_scales(tile) + first;
    const int32_t* sums = x.tile_sums(tile) + first;
    const __m256i bias = _mm256_set1_epi8(-128);
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
            lower[row] = upper[row] = _mm256_set1_epi32(sums[row]);
        }
        for (; block < stop; block += Source::blocks_at_once) {
            Block weights[Source::blocks_at_once];
            source.take(weights);
            for (const Block& weight : weights) {
                const Block above = each(weight, [&](__m256i half) { return _mm256_xor_si256(half, bias); });
                FOR_ROWS {
                    int32_t four;
                    __builtin_memcpy(&four, terms + 4 * row, 4);
                    const __m256i activations = _mm256_set1_epi32(four);
                    lower[row] = DOT_BYTES(lower[row], above.first, activations);
                    upper[row] = DOT_BYTES(upper[row], above.second, activations);
                }
                terms += 4 * tile_rows;
            }
        }
        const Sixteen weight_scales = load_scales(matrix, panel, group);
        FOR_ROWS {
            const __m256 scale = _mm256_set1_ps(scales[row]);
            result[row].lower = _mm256_fmadd_ps(
                _mm256_mul_ps(_mm256_cvtepi32_ps(lower[row]), weight_scales.lower), scale, result[row].lower);
            result[row].upper = _mm256_fmadd_ps(
                _mm256_mul_ps(_mm256_cvtepi32_ps(upper[row]), weight_scales.upper), scale, result[row].upper);
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
                case 4: multiply_grouped8_rows<4>(matrix, panel, source, x, tile, first, output); break;
                case 5: multiply_grouped8_rows<5>(matrix, panel, source, x, tile, first, output); break;
                default: multiply_grouped8_rows<6>(matrix, panel, source, x, tile, first, output);
            }
        }
    }
}

// What is read once is multiplied as it is expanded.
void multiply_grouped8_panel(
    const PackedMatrix& matrix, size_t panel, const Activations& x, const Output& output, uint8_t* scratch) {
    const uint8_t *masks = matrix.panel_masks(panel), *values = matrix.panel_values(panel);
    const bool bytes = matrix.value_type == ValueType::int8, dense = masks == nullptr;
    const bool once = x.rows <= grouped8_rows && (bytes || matrix.blocks() % 2 == 0);
    if (bytes && dense) {
        multiply_grouped8_panel(matrix, panel, DenseBytes{values}, x, output);
    } else if (!once) {
        expand_panel(matrix, panel, scratch);
        multiply_grouped8_panel(matrix, panel, DenseBytes{scratch}, x, output);
    } else if (bytes) {
        multiply_grouped8_panel(matrix, panel, SparseBytes{masks, values}, x, output);
    } else if (dense) {
        multiply_grouped8_panel(matrix, panel, Signed<DenseNibbles>{{values}}, x, output);
    } else {
        multiply_grouped8_panel(matrix, panel, Signed<SparseNibbles>{{masks, values}}, x, output);
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

bool has_avx_vnni() {
#ifdef SHEARLING_VNNI_OF_AVX512
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
#else
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
#endif
}

const KernelSet avx_vnni_kernels = {
    "avx_vnni",
    forms(Form::fixed16, Form::grouped8),
    arrange_integers,
    multiply,
    normalise,
    activate,
    &attention_kernels,
    nullptr};

}  // namespace shearling

#pragma GCC pop_options

#endif
