// Kernels for AMX: products of whole tiles, for more rows of activations than a decoded token has; otherwise those of
// AVX-512.
//
// A tile register holds 16 rows of 64 bytes. Sixteen expanded blocks of a panel are such a tile as they lie, so that a
// step multiplies two registers of activations by those of two panels into four of sums. Steps go on for a segment of
// columns; then the sums are scaled and added in f32, while what was expanded for the segment is still in the
// first-level cache for the next rows.
#if defined(__x86_64__) && __has_include(<amxbf16intrin.h>)

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels.hpp"
#include "scales.hpp"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni", \
                   "popcnt,bmi,bmi2,f16c,fma,amx-tile,amx-int8,amx-bf16")

namespace shearling {
namespace {

#include "amx_tiles.inc"
#include "avx512_panels.inc"

constexpr size_t register_bytes = 1024;
constexpr size_t register_rows = 16;
constexpr size_t register_blocks = 16;
constexpr size_t panels_together = 16;
constexpr size_t rows_together = 512;
constexpr size_t total_bytes = panels_together * rows_together * panel_rows * sizeof(float);
constexpr size_t segment_bytes = tiled_segment_blocks * register_bytes;
static_assert(tiled_scratch_bytes == total_bytes + 2 * 2 * segment_bytes + 2 * 4 * register_bytes);

// Integers times the scales of their groups, in bf16: two blocks of 2 columns for each of 4.
template <class Integers>
struct Scaled : BlocksAlone<Scaled<Integers>, true> {
    Integers integers;
    PanelScales panel;
    size_t block = 0;  // to be read next, of integers
    bool second_is_left = false;
    __m512 scales;
    __m512i second;

    static Scaled of_panel(const PackedMatrix& matrix, size_t index) {
        Scaled reader;
        reader.integers = Integers::of_panel(matrix, index);
        reader.panel = panel_of(matrix, index).scales;
        return reader;
    }
    static size_t blocks_of(const PackedMatrix& matrix) { return 2 * matrix.blocks(); }

    INLINE __m512i next() {
        if (second_is_left) {
            second_is_left = false;
            return second;
        }
        if (block % panel.group_blocks == 0) {
            scales = load_scales(panel.scales, panel.type, block / panel.group_blocks);
        }
        ++block;
        const __m512i bytes = _mm512_xor_si512(Integers::usual(integers.next()), _mm512_set1_epi8(-128));
        second = pair(column(_mm512_slli_epi32(bytes, 8)), column(bytes));
        second_is_left = true;
        return pair(column(_mm512_slli_epi32(bytes, 24)), column(_mm512_slli_epi32(bytes, 16)));
    }
    INLINE void fetch() const {
        if (!second_is_left) {
            integers.fetch();
        }
    }

private:
    // The signed byte at the top of each lane.
    INLINE __m512i column(__m512i top) const {
        const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24)), scales);
        return _mm512_add_epi32(_mm512_castps_si512(value), _mm512_set1_epi32(0x8000));  // rounds what is cut off below
    }
    static INLINE __m512i pair(__m512i first, __m512i second) {
        return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(first, 16), second);
    }
};

// Blocks of up to two panels on their way into scratch memory, as signed bytes or bf16; zeros where the last step has
// fewer.
template <class Reader>
class Expansion {
public:
    Expansion() = default;
    Expansion(Reader* readers, size_t panels, size_t blocks, size_t steps, uint8_t* target)
        : readers_(readers), panels_(panels), blocks_(blocks), steps_(steps), target_(target) {}

    // Expands what one step multiplies.
    INLINE void advance() {
        if (step_ == steps_) {
            return;
        }
        const size_t left = blocks_ - step_ * register_blocks;
        const size_t count = left < register_blocks ? left : register_blocks;
        for (size_t panel = 0; panel < panels_; ++panel) {
            expand(readers_[panel], count, target_ + panel * segment_bytes + step_ * register_bytes);
        }
        ++step_;
    }

    INLINE void finish() {
        while (step_ < steps_) {
            advance();
        }
    }

private:
    static INLINE void expand(Reader& stored, size_t count, uint8_t* target) {
        Reader reader = stored;
        const __m512i bias = Reader::of_bf16 ? _mm512_setzero_si512() : _mm512_set1_epi8(-128);
        uint8_t* end = target;
        for_blocks(reader, count, [&](__m512i weights, int) INLINE_LAMBDA {
            _mm512_store_si512(end, _mm512_xor_si512(Reader::usual(weights), bias));
            end += 64;
        });
        for (; end < target + register_bytes; end += 64) {
            _mm512_store_si512(end, _mm512_setzero_si512());
        }
        stored = reader;
    }

    Reader* readers_ = nullptr;
    size_t panels_ = 0;
    size_t blocks_ = 0;
    size_t steps_ = 0;
    size_t step_ = 0;
    uint8_t* target_ = nullptr;
};

// A macro, since the numbers of registers are part of the instruction.
#define ADD_PRODUCT(sum, activations, panel)         \
    if constexpr (Reader::of_bf16) {                 \
        _tile_dpbf16ps(sum, activations, panel);     \
    } else {                                         \
        _tile_dpbssd(sum, activations, panel);       \
    }

// Sums of products: the first activations with both panels, then the second ones. What is multiplied next is expanded
// meanwhile.
template <bool second_activations, bool second_panel, class Reader>
INLINE void multiply_registers(
    const uint8_t* activations, const uint8_t* panels, size_t steps, Expansion<Reader>& next, uint8_t* sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t step = 0; step < steps; ++step) {
        _tile_loadd(4, activations, 64);
        _tile_loadd(6, panels, 64);
        ADD_PRODUCT(0, 4, 6)
        if constexpr (second_panel) {
            _tile_loadd(7, panels + segment_bytes, 64);
            ADD_PRODUCT(1, 4, 7)
        }
        if constexpr (second_activations) {
            _tile_loadd(5, activations + register_bytes, 64);
            ADD_PRODUCT(2, 5, 6)
        }
        if constexpr (second_activations && second_panel) {
            ADD_PRODUCT(3, 5, 7)
        }
        activations += 2 * register_bytes;
        panels += register_bytes;
        next.advance();
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + register_bytes, 64);
    _tile_stored(2, sums + 2 * register_bytes, 64);
    _tile_stored(3, sums + 3 * register_bytes, 64);
}

// Panels with all rows of activations, in parts: of one part, two panels by a segment of columns are expanded and
// multiplied by all rows.
template <class Reader>
class TiledProduct {
public:
    TiledProduct(const PackedMatrix& matrix, const Activations& x, const Output& output, uint8_t* scratch)
        : matrix_(matrix),
          x_(x),
          output_(output),
          totals_(reinterpret_cast<float*>(scratch)),
          expanded_(scratch + total_bytes),
          sums_(expanded_ + 4 * segment_bytes) {}

    void run(size_t first_panel, size_t last_panel) {
        first_panel_ = first_panel;
        panels_ = last_panel - first_panel;
        for (size_t first = 0; first < x_.rows; first += rows_together) {
            first_tile_ = first / x_.tile;
            last_tile_ = first + rows_together < x_.rows ? (first + rows_together) / x_.tile : x_.tiles();
            for (size_t panel = 0; panel < panels_; ++panel) {
                readers_[panel] = Reader::of_panel(matrix_, first_panel_ + panel);
            }
            multiply_parts();
        }
    }

private:
    struct Part {
        size_t panel;
        size_t panels;
        size_t segment;
        size_t start;
        size_t steps;
    };

    // Weights are read in one stream, unless that means that activations are read from beyond the second-level cache
    // each time.
    Part part(size_t index) const {
        const bool near = (last_tile_ - first_tile_) * x_.tile * x_.blocks * x_.block_bytes() <= near_bytes;
        const size_t pairs = (panels_ + 1) / 2;
        const size_t panel = 2 * (near ? index / x_.segments() : index % pairs),
                     segment = near ? index % x_.segments() : index / pairs;
        const size_t start = segment * x_.segment_blocks;
        const size_t steps = start + x_.segment_blocks < x_.blocks ? x_.segment_blocks : x_.blocks - start;
        return {panel, panel + 1 < panels_ ? size_t{2} : size_t{1}, segment, start, steps};
    }

    uint8_t* place_of(size_t index) const { return expanded_ + index % 2 * 2 * segment_bytes; }

    Expansion<Reader> expansion(size_t index) {
        const Part part = this->part(index);
        return {
            &readers_[part.panel], part.panels, Reader::blocks_of(matrix_) - part.start * register_blocks, part.steps,
            place_of(index)};
    }

    void multiply_parts() {
        const size_t parts = (panels_ + 1) / 2 * x_.segments();
        expansion(0).finish();
        for (size_t index = 0; index < parts; ++index) {
            const Part part = this->part(index);
            Expansion<Reader> next = index + 1 < parts ? expansion(index + 1) : Expansion<Reader>();
            // The sums of a tile are added while the next one is multiplied.
            for (size_t tile = first_tile_; tile < last_tile_; ++tile) {
                multiply(part, tile, place_of(index), next);
                if (tile != first_tile_) {
                    add(part, tile - 1);
                }
            }
            next.finish();
            add(part, last_tile_ - 1);
        }
    }

    uint8_t* sums_of(size_t tile) const { return sums_ + tile % 2 * 4 * register_bytes; }

    void multiply(const Part& part, size_t tile, const uint8_t* panels, Expansion<Reader>& next) {
        const uint8_t* activations = x_.tile_terms(tile) + part.start * 2 * register_bytes;
        const bool both = !Reader::of_bf16 || x_.tile_rows(tile) > register_rows;
        uint8_t* const sums = sums_of(tile);
        if (part.panels == 2) {
            both ? multiply_registers<true, true>(activations, panels, part.steps, next, sums)
                 : multiply_registers<false, true>(activations, panels, part.steps, next, sums);
        } else {
            both ? multiply_registers<true, false>(activations, panels, part.steps, next, sums)
                 : multiply_registers<false, false>(activations, panels, part.steps, next, sums);
        }
    }

    float* total_of(size_t panel, size_t row) const {
        return totals_ + (panel * rows_together + row - first_tile_ * x_.tile) * panel_rows;
    }

    void add(const Part& part, size_t tile) {
        for (size_t place = 0; place < part.panels; ++place) {
            add_panel(part, tile, place);
        }
    }

    // Adds the sums of a part and a tile to the totals of one of its panels; the last part writes what they come to.
    INLINE void add_panel(const Part& part, size_t tile, size_t place) {
        const uint8_t* first = sums_of(tile) + place * register_bytes;
        const uint8_t* second = first + 2 * register_bytes;
        const Panel panel = panel_of(matrix_, first_panel_ + part.panel + place);
        if constexpr (Reader::of_bf16) {
            finish_rows(part, tile, part.panel + place, panel, [&](size_t row) INLINE_LAMBDA {
                return _mm512_load_ps(row < register_rows ? first + row * 64 : second + (row - register_rows) * 64);
            });
        } else {
            const PanelScales& scales = panel.scales;
            const __m512 weight_scales =
                load_scales(scales.scales, scales.type, part.start * register_blocks / scales.group_blocks);
            const float* row_scales = x_.tile_scales(tile) + part.segment * x_.tile;
            finish_rows(part, tile, part.panel + place, panel, [&](size_t row) INLINE_LAMBDA {
                // Both are exact: a segment has too few columns for sums beyond 24 bits.
                const __m512 high = _mm512_cvtepi32_ps(_mm512_load_si512(first + row * 64)),
                             low = _mm512_cvtepi32_ps(_mm512_load_si512(second + row * 64));
                return _mm512_mul_ps(
                    _mm512_fmadd_ps(high, _mm512_set1_ps(256.0f), low),
                    _mm512_mul_ps(weight_scales, _mm512_set1_ps(row_scales[row])));
            });
        }
    }

    template <class Sum>
    INLINE void finish_rows(const Part& part, size_t tile, size_t index, const Panel& panel, const Sum& sum) {
        const size_t first_row = tile * x_.tile, rows = x_.tile_rows(tile);
        const bool first = part.segment == 0, last = part.segment + 1 == x_.segments();
        float* total = total_of(index, first_row);
        for (size_t row = 0; row < rows; ++row, total += panel_rows) {
            const __m512 value = first ? sum(row) : _mm512_add_ps(_mm512_load_ps(total), sum(row));
            if (last) {
                write_row(value, output_, first_row + row, panel.index * panel_rows, panel.outputs);
            } else {
                _mm512_store_ps(total, value);
            }
        }
    }

    const PackedMatrix& matrix_;
    const Activations& x_;
    const Output& output_;
    float* totals_;      // [panels_together][rows_together][16]
    uint8_t* expanded_;  // of this part and the next: [2][2 panels][segment_bytes]
    uint8_t* sums_;      // of this tile and the last: [2][4 registers]
    Reader readers_[panels_together] = {};
    size_t first_panel_ = 0;
    size_t panels_ = 0;
    size_t first_tile_ = 0;
    size_t last_tile_ = 0;
};

struct MultiplyTiled {
    const PackedMatrix& matrix;
    const Activations& x;
    size_t first;
    size_t last;
    const Output& output;
    uint8_t* scratch;
    template <class Reader>
    void operator()(Reader) const {
        if constexpr (!Reader::of_bf16) {
            if (x.form == Form::tiled_once16) {
                return multiply<Scaled<Reader>>();
            }
        }
        multiply<Reader>();
    }
    template <class Reader>
    void multiply() const {
        TiledProduct<Reader> product(matrix, x, output, scratch);
        for (size_t panel = first; panel < last; panel += panels_together) {
            product.run(panel, panel + panels_together < last ? panel + panels_together : last);
        }
    }
};

void multiply(
    const PackedMatrix& matrix, const Activations& x, size_t first, size_t last, const Output& output,
    uint8_t* scratch) {
    if (!x.tiled()) {
        return avx512_bf16_kernels.multiply(matrix, x, first, last, output, scratch);
    }
    const TileConfiguration configuration;
    visit_panel(matrix, first, MultiplyTiled{matrix, x, first, last, output, scratch});
}

void normalise(const float* x, const float* gamma, float epsilon, size_t columns, float* y) {
    avx512_kernels.normalise(x, gamma, epsilon, columns, y);
}

void activate(Function function, const float* x, const float* factor, size_t count, float* y) {
    avx512_kernels.activate(function, x, factor, count, y);
}

}  // namespace

// The processor has the instructions, and the system lets this process use the registers.
bool has_tile_registers() {
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & (bf16 | tile | int8)) != (bf16 | tile | int8)) {
        return false;
    }
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

const KernelSet amx_kernels = {
    "amx",
    forms(
        Form::fixed16, Form::grouped8, Form::wide32, Form::once16, Form::tiled_fixed16, Form::tiled_once16),
    arrange_avx512,
    multiply,
    normalise,
    activate,
    &avx512_attention,
    &amx_paired_attention};

}  // namespace shearling

#pragma GCC pop_options

#elif defined(__x86_64__)

#include "kernels.hpp"

namespace shearling {

// This compiler knows no AMX.
bool has_tile_registers() { return false; }
const KernelSet amx_kernels = {"amx", forms(), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};

}  // namespace shearling

#endif
