// Kernels for AVX-512 with VBMI2 and VNNI: Ice Lake and later. Zen 4 and Sapphire Rapids, which multiply pairs of bf16,
// have those of avx512_bf16.cpp.
#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels.hpp"
#include "scales.hpp"

#include <cmath>
#include <cstring>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni", \
                   "popcnt,bmi,bmi2,f16c,fma")

namespace shearling {
namespace {

#include "avx512_panels.inc"
#include "avx512_tiles.inc"

// In assembly because the compiler otherwise copies sums.
INLINE void add_products(__m512i& sum, __m512i weights, __m512i activations) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(activations));
}

// Which group of weights a segment is a part of: counted, since a division takes as long as a block.
class GroupCounter {
public:
    explicit GroupCounter(size_t blocks) : blocks_(blocks), stop_(blocks) {}
    // `start`: a block no less than the last one asked for, and at most a group behind it.
    INLINE size_t of(size_t start) {
        if (start == stop_) {
            stop_ += blocks_;
            ++group_;
        }
        return group_;
    }

private:
    size_t blocks_;
    size_t stop_;
    size_t group_ = 0;
};

// 256 high + low
INLINE __m512 join(__m512i high, __m512i low) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(low));
}

constexpr size_t short_segment = activation_group / 4;

template <int rows, class Reader>
INLINE void multiply_fixed16(
    Reader reader, const PanelScales& panel, const Activations& x, size_t tile, __m512 (&result)[rows]) {
    const uint8_t* terms = x.tile_terms(tile);
    const int32_t* sums = x.tile_sums(tile);
    const float* row_scales = x.tile_scales(tile);
    // A product waits for the one before it that adds to the same sum: with few rows there is nothing else to do.
    constexpr int sums_of_row = rows <= 2 ? 2 : 1;
    GroupCounter groups(panel.group_blocks);
    __m512 total[rows];
    FOR_ROWS {
        total[row] = _mm512_setzero_ps();
    }
    for (size_t start = 0, segment = 0; start < x.blocks; start += x.segment_blocks, ++segment) {
        const size_t stop = start + x.segment_blocks < x.blocks ? start + x.segment_blocks : x.blocks;
        __m512i high[sums_of_row][rows], low[sums_of_row][rows];
        FOR_ROWS {
            high[0][row] = _mm512_set1_epi32(sums[2 * row]);
            low[0][row] = _mm512_set1_epi32(sums[2 * row + 1]);
            if (sums_of_row > 1) {
                high[sums_of_row - 1][row] = low[sums_of_row - 1][row] = _mm512_setzero_si512();
            }
        }
        const auto step = [&](__m512i weights, int turn) INLINE_LAMBDA {
            const int sum = sums_of_row > 1 ? turn : 0;
            FOR_ROWS {
                add_products(high[sum][row], weights, broadcast(terms + 8 * row));
                add_products(low[sum][row], weights, broadcast(terms + 8 * row + 4));
            }
            terms += 8 * rows;
        };
        if (sums_of_row > 1 && stop - start == short_segment && !reader.halfway()) {
            for_fixed_blocks<short_segment>(reader, step);
        } else {
            for_blocks(reader, stop - start, step);
        }
        if (sums_of_row > 1) {
            FOR_ROWS {
                high[0][row] = _mm512_add_epi32(high[0][row], high[sums_of_row - 1][row]);
                low[0][row] = _mm512_add_epi32(low[0][row], low[sums_of_row - 1][row]);
            }
        }
        const __m512 weight_scales = load_scales(panel.scales, panel.type, groups.of(start));
        FOR_ROWS {
            total[row] = _mm512_fmadd_ps(join(high[0][row], low[0][row]), weight_scales, total[row]);
        }
        sums += 2 * rows;
    }
    FOR_ROWS {
        result[row] = _mm512_mul_ps(total[row], _mm512_set1_ps(row_scales[row] * Reader::unit));
    }
}

// The scales of a group of weights for each segment, in the order of the segments.
struct ScalesInTurn {
    const PanelScales& panel;
    GroupCounter groups;
    INLINE __m512 operator()(size_t start) { return load_scales(panel.scales, panel.type, groups.of(start)); }
};

// The same where a segment is a group.
template <ScaleType type>
struct ScalesOfSegments {
    const uint8_t* scales;
    INLINE __m512 operator()(size_t start) { return load_scales(scales, type, start / short_segment); }
};

// As multiply_grouped8, for so few rows that a segment's end takes as long as a block: no loop within, no question that
// every segment answers alike.
template <int rows, class Scales, class Reader>
INLINE void multiply_segments(
    Reader reader, Scales scales_of, const Activations& x, size_t tile, __m512 (&result)[rows]) {
    const uint8_t* terms = x.tile_terms(tile);
    const int32_t* sums = x.tile_sums(tile);
    const float* scales = x.tile_scales(tile);
    FOR_ROWS {
        result[row] = _mm512_setzero_ps();
    }
    const auto segment = [&](size_t start, const auto& visit_blocks) INLINE_LAMBDA {
        __m512i sum[2][rows];
        FOR_ROWS {
            sum[0][row] = _mm512_set1_epi32(sums[row]);
            sum[1][row] = _mm512_setzero_si512();
        }
        visit_blocks([&](__m512i weights, int turn) INLINE_LAMBDA {
            FOR_ROWS {
                add_products(sum[turn][row], weights, broadcast(terms + 4 * row));
            }
            terms += 4 * rows;
        });
        const __m512 weight_scales = scales_of(start);
        FOR_ROWS {
            const __m512 total = _mm512_cvtepi32_ps(_mm512_add_epi32(sum[0][row], sum[1][row]));
            result[row] =
                _mm512_fmadd_ps(_mm512_mul_ps(total, weight_scales), _mm512_set1_ps(scales[row]), result[row]);
        }
        sums += rows;
        scales += rows;
    };
    const size_t whole = x.blocks / short_segment * short_segment;
#pragma GCC unroll 2
    for (size_t start = 0; start < whole; start += short_segment) {
        segment(start, [&](const auto& step) INLINE_LAMBDA { for_fixed_blocks<short_segment>(reader, step); });
    }
    if (whole < x.blocks) {
        segment(whole, [&](const auto& step) INLINE_LAMBDA { for_blocks(reader, x.blocks - whole, step); });
    }
    FOR_ROWS {
        result[row] = _mm512_mul_ps(result[row], _mm512_set1_ps(Reader::unit));
    }
}

template <int rows, class Reader>
INLINE void multiply_few_grouped8(
    Reader reader, const PanelScales& panel, const Activations& x, size_t tile, __m512 (&result)[rows]) {
    const auto multiply = [&](const auto& scales_of) INLINE_LAMBDA {
        multiply_segments<rows>(reader, scales_of, x, tile, result);
    };
    if (panel.group_blocks != short_segment) {
        return multiply(ScalesInTurn{panel, GroupCounter(panel.group_blocks)});
    }
    switch (panel.type) {
        case ScaleType::f32: return multiply(ScalesOfSegments<ScaleType::f32>{panel.scales});
        case ScaleType::f16: return multiply(ScalesOfSegments<ScaleType::f16>{panel.scales});
        default: return multiply(ScalesOfSegments<ScaleType::i8>{panel.scales});
    }
}

template <int rows, class Reader>
INLINE void multiply_grouped8(
    Reader reader, const PanelScales& panel, const Activations& x, size_t tile, __m512 (&result)[rows]) {
    const uint8_t* terms = x.tile_terms(tile);
    const int32_t* sums = x.tile_sums(tile);
    const float* scales = x.tile_scales(tile);
    FOR_ROWS {
        result[row] = _mm512_setzero_ps();
    }
    const bool one_scale = panel.group_blocks >= x.blocks;
    __m512 weight_scales = one_scale ? _mm512_set1_ps(1.0f) : load_scales(panel.scales, panel.type, 0);
    for (size_t start = 0; start < x.blocks; start += x.segment_blocks) {
        const size_t stop = start + x.segment_blocks < x.blocks ? start + x.segment_blocks : x.blocks;
        __m512i sum[rows];
        FOR_ROWS {
            sum[row] = _mm512_set1_epi32(sums[row]);
        }
        for_blocks(reader, stop - start, [&](__m512i weights, int) INLINE_LAMBDA {
            FOR_ROWS {
                sum[row] = _mm512_dpbusd_epi32(sum[row], weights, broadcast(terms + 4 * row));
            }
            terms += 4 * rows;
        });
        if (!one_scale) {
            weight_scales = load_scales(panel.scales, panel.type, start / panel.group_blocks);
            FOR_ROWS {
                result[row] = _mm512_fmadd_ps(
                    _mm512_mul_ps(_mm512_cvtepi32_ps(sum[row]), weight_scales), _mm512_set1_ps(scales[row]),
                    result[row]);
            }
        } else {
            FOR_ROWS {
                result[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[row]), _mm512_set1_ps(scales[row]), result[row]);
            }
        }
        sums += rows;
        scales += rows;
    }
    weight_scales = one_scale ? load_scales(panel.scales, panel.type, 0) : _mm512_set1_ps(1.0f);
    if (one_scale || Reader::unit != 1.0f) {
        FOR_ROWS {
            result[row] = _mm512_mul_ps(result[row], _mm512_mul_ps(weight_scales, _mm512_set1_ps(Reader::unit)));
        }
    }
}

// Two panels by the rows of a tile: every activation that is loaded serves both.
template <int rows>
INLINE void multiply_pair_grouped8(
    const uint8_t* first, const uint8_t* second, const PanelScales (&panels)[2], const Activations& x, size_t tile,
    __m512 (&result)[2][rows]) {
    const uint8_t* terms = x.tile_terms(tile);
    const int32_t* sums = x.tile_sums(tile);
    const float* scales = x.tile_scales(tile);
    FOR_ROWS {
        result[0][row] = _mm512_setzero_ps();
        result[1][row] = _mm512_setzero_ps();
    }
    const bool one_scale = panels[0].group_blocks >= x.blocks;
    for (size_t start = 0; start < x.blocks; start += x.segment_blocks) {
        const size_t stop = start + x.segment_blocks < x.blocks ? start + x.segment_blocks : x.blocks;
        __m512i sum[2][rows];
        FOR_ROWS {
            sum[0][row] = sum[1][row] = _mm512_set1_epi32(sums[row]);
        }
        const auto step = [&]() INLINE_LAMBDA {
            const __m512i one = _mm512_load_si512(first), other = _mm512_load_si512(second);
            FOR_ROWS {
                const __m512i activations = broadcast(terms + 4 * row);
                add_products(sum[0][row], one, activations);
                add_products(sum[1][row], other, activations);
            }
            first += 64;
            second += 64;
            terms += 4 * rows;
        };
        if (stop - start == short_segment) {
#pragma GCC unroll 8
            for (size_t block = 0; block < short_segment; ++block) {
                step();
            }
        } else {
            for (size_t block = start; block < stop; ++block) {
                step();
            }
        }
        if (one_scale) {
            FOR_ROWS {
                const __m512 scale = _mm512_set1_ps(scales[row]);
                result[0][row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[0][row]), scale, result[0][row]);
                result[1][row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[1][row]), scale, result[1][row]);
            }
        } else {
            const __m512 of_first = load_scales(panels[0].scales, panels[0].type, start / panels[0].group_blocks),
                         of_second = load_scales(panels[1].scales, panels[1].type, start / panels[1].group_blocks);
            FOR_ROWS {
                const __m512 scale = _mm512_set1_ps(scales[row]);
                result[0][row] = _mm512_fmadd_ps(
                    _mm512_mul_ps(_mm512_cvtepi32_ps(sum[0][row]), of_first), scale, result[0][row]);
                result[1][row] = _mm512_fmadd_ps(
                    _mm512_mul_ps(_mm512_cvtepi32_ps(sum[1][row]), of_second), scale, result[1][row]);
            }
        }
        sums += rows;
        scales += rows;
    }
    if (one_scale) {
        for (int panel = 0; panel < 2; ++panel) {
            const __m512 weight_scales = load_scales(panels[panel].scales, panels[panel].type, 0);
            FOR_ROWS {
                result[panel][row] = _mm512_mul_ps(result[panel][row], weight_scales);
            }
        }
    }
}

template <int rows, class Reader>
INLINE void multiply_wide32(Reader reader, const Activations& x, size_t tile, __m512 (&result)[rows]) {
    const uint8_t* terms = x.tile_terms(tile);
    // Few rows leave the adder idle between two dependent sums: both columns of a block then have sums of their own.
    constexpr int sums = rows <= 8 ? 2 : 1;
    __m512 total[rows][sums];
    FOR_ROWS {
        for (int sum = 0; sum < sums; ++sum) {
            total[row][sum] = _mm512_setzero_ps();
        }
    }
    for_blocks(reader, x.blocks, [&](__m512i pairs, int) INLINE_LAMBDA {
        const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
        const __m512 second =
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
        FOR_ROWS {
            total[row][0] = _mm512_fmadd_ps(first, _mm512_castsi512_ps(broadcast(terms + 8 * row)), total[row][0]);
            total[row][sums - 1] =
                _mm512_fmadd_ps(second, _mm512_castsi512_ps(broadcast(terms + 8 * row + 4)), total[row][sums - 1]);
        }
        terms += 8 * rows;
    });
    FOR_ROWS {
        result[row] = sums == 1 ? total[row][0] : _mm512_add_ps(total[row][0], total[row][sums - 1]);
    }
}

template <Form form>
struct Product {
    template <int rows, class Reader>
    static INLINE void run(
        Reader reader, const PanelScales& panel, const Activations& x, size_t tile, __m512 (&result)[rows]) {
        if constexpr (form == Form::fixed16) {
            multiply_fixed16<rows>(reader, panel, x, tile, result);
        } else if constexpr (form == Form::grouped8 && rows <= 2) {
            multiply_few_grouped8<rows>(reader, panel, x, tile, result);
        } else if constexpr (form == Form::grouped8) {
            multiply_grouped8<rows>(reader, panel, x, tile, result);
        } else {
            multiply_wide32<rows>(reader, x, tile, result);
        }
    }
};

struct Tiles {
    template <class Reader>
    static INLINE void multiply(
        Reader reader, const Panel& panel, const Activations& x, size_t tile, const Output& output) {
        if constexpr (Reader::of_bf16) {
            multiply_up_to<wide32_tile, Product<Form::wide32>>(reader, panel, x, tile, output);
        } else if (x.form == Form::grouped8) {
            multiply_up_to<grouped8_tile, Product<Form::grouped8>>(reader, panel, x, tile, output);
        } else {
            multiply_up_to<fixed16_tile, Product<Form::fixed16>>(reader, panel, x, tile, output);
        }
    }
};

// Leaves the blocks of a panel in scratch memory, with every byte turned by `bias`.
struct Expand {
    size_t blocks;
    uint8_t* scratch;
    int8_t bias = 0;
    template <class Reader>
    void operator()(Reader reader) const {
        uint8_t* target = scratch;
        for_blocks(reader, blocks, [&](__m512i weights, int) INLINE_LAMBDA {
            _mm512_store_si512(target, _mm512_xor_si512(Reader::usual(weights), _mm512_set1_epi8(bias)));
            target += 64;
        });
    }
};

void expand_panel(const PackedMatrix& matrix, size_t index, uint8_t* scratch) {
    // The exact kernels want the weights themselves.
    const int8_t bias = matrix.value_type == ValueType::bf16 ? 0 : -128;
    visit_panel(matrix, index, Expand{matrix.blocks(), scratch, bias});
}

constexpr size_t lane_count = 16;

INLINE __m512 multiply_add(__m512 a, __m512 b, __m512 sum) { return _mm512_fmadd_ps(a, b, sum); }

#include "exact.inc"

#include "avx512_numbers.inc"

constexpr size_t attention_rows = 6;
constexpr size_t attention_vectors = 4;

#include "attention.inc"

template <int rows>
__attribute__((noinline)) void multiply_pair(
    const uint8_t* blocks, const Panel (&panels)[2], const Activations& x, size_t tile, const Output& output) {
    __m512 result[2][rows];
    const PanelScales scales[2] = {panels[0].scales, panels[1].scales};
    multiply_pair_grouped8<rows>(blocks, blocks + x.blocks * 64, scales, x, tile, result);
    FOR_ROWS {
        for (int panel = 0; panel < 2; ++panel) {
            write_row(
                result[panel][row], output, tile * x.tile + static_cast<size_t>(row), panels[panel].index * panel_rows,
                panels[panel].outputs);
        }
    }
}

template <int rows>
INLINE void multiply_pair_up_to(
    const uint8_t* blocks, const Panel (&panels)[2], const Activations& x, size_t tile, const Output& output) {
    if (x.tile_rows(tile) == rows) {
        return multiply_pair<rows>(blocks, panels, x, tile, output);
    }
    if constexpr (rows > 1) {
        multiply_pair_up_to<rows - 1>(blocks, panels, x, tile, output);
    }
}

// Two panels at a time meet all rows: the panels stay near, and a tile is little beside what is done with it.
void multiply_pairs(
    const PackedMatrix& matrix, const Activations& x, size_t first, size_t last, const Output& output,
    uint8_t* scratch) {
    for (size_t index = first; index < last; index += 2) {
        // The last of an odd number is its own partner.
        const size_t partner = index + 1 < last ? index + 1 : index;
        const Panel panels[2] = {panel_of(matrix, index), panel_of(matrix, partner)};
        visit_panel(matrix, index, Expand{x.blocks, scratch});
        visit_panel(matrix, partner, Expand{x.blocks, scratch + x.blocks * 64});
        for (size_t tile = 0; tile < x.tiles(); ++tile) {
            multiply_pair_up_to<paired_tile>(scratch, panels, x, tile, output);
        }
    }
}

void multiply(
    const PackedMatrix& matrix, const Activations& x, size_t first, size_t last, const Output& output,
    uint8_t* scratch) {
    if (x.form == Form::plain32) {
        return multiply_exact(matrix, x, first, last, output, scratch);
    }
    if (x.form == Form::grouped8 && x.rows >= least_paired_rows) {
        return multiply_pairs(matrix, x, first, last, output, scratch);
    }
    multiply_tiles<Tiles>(matrix, x, first, last, output, scratch);
}

}  // namespace

const KernelSet avx512_kernels = {
    "avx512",
    forms(Form::fixed16, Form::grouped8, Form::wide32),
    arrange_avx512,
    multiply,
    normalise,
    activate,
    &attention_kernels,
    nullptr};

const AttentionKernels avx512_attention = attention_kernels;

}  // namespace shearling

#pragma GCC pop_options

#endif
