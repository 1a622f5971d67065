// The C interface: what torch, tests and other languages call.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>

#include "buffer.hpp"
#include "linear.hpp"
#include "pairs.hpp"
#include "tbb_threads.hpp"

#define SHEARLING_EXPORT extern "C" __attribute__((visibility("default")))

using namespace shearling;

namespace {

// Runs what may throw, where no exception may leave: its answer, or what was thrown in words.
template <class Body>
const char* guarded(const Body& body) noexcept {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return "not enough memory";
    } catch (...) {
        return "the computation failed";
    }
}

// Null, or what is wrong with a packed matrix; `checked`: only its header is read.
const char* read_matrix(const uint8_t* packed, size_t size, bool checked, PackedMatrix& matrix) {
    const char* fault = packed == nullptr ? "no packed matrix" : read_header(packed, size, matrix);
    return fault != nullptr || checked ? fault : validate(matrix, tbb_threads());
}

// Reads one word of every cache line, which comes whole, of `shares` pieces of memory, each on a thread.
uint64_t read_piece(const uint8_t* bytes, size_t share_bytes, size_t shares) {
    constexpr size_t line = 64, ahead = 4096;
    struct Reading {
        const uint8_t* bytes;
        size_t share_bytes;
        std::atomic<uint64_t> sum{0};
    };
    Reading reading{bytes, share_bytes / line * line};
    tbb_threads().run(shares, [](void* context, size_t share) {
        Reading& all = *static_cast<Reading*>(context);
        const uint8_t* const start = all.bytes + share * all.share_bytes;
        uint64_t sum = 0;
        for (size_t at = 0; at < all.share_bytes; at += line) {
            uint64_t word;
            __builtin_prefetch(start + at + ahead);
            std::memcpy(&word, start + at, sizeof word);
            sum ^= word;
        }
        all.sum ^= sum;
    }, &reading);
    return reading.sum;
}

}  // namespace

// Null, or what is wrong with a packed matrix.
SHEARLING_EXPORT const char* shearling_validate(const uint8_t* packed, uint64_t size) {
    return guarded([&] {
        PackedMatrix matrix;
        return read_matrix(packed, size, false, matrix);
    });
}

// Bytes of the packed form, 0 where the sizes or values do not fit; `packed` may be null, then nothing is written.
SHEARLING_EXPORT uint64_t shearling_pack(
    uint32_t value_type, uint32_t encoding, uint32_t scale_type, uint64_t rows, uint64_t columns, uint64_t group_size,
    const void* values, const void* scales, uint8_t* packed) {
    const bool scaled = scale_type != 0;
    const bool known = known_value_type(value_type) && scale_type <= static_cast<uint32_t>(ScaleType::f16);
    if (!known || encoding > 1 || values == nullptr || (scaled && scales == nullptr)) {
        return 0;
    }
    const MatrixForm form{
        static_cast<ValueType>(value_type),
        static_cast<Encoding>(encoding),
        static_cast<ScaleType>(scale_type),
        rows,
        columns,
        group_size};
    const PlainMatrix plain{form, values, scales};
    uint64_t written = 0;
    guarded([&]() -> const char* {
        const size_t size = packed_size(plain);
        if (size != 0 && packed != nullptr) {
            pack(plain, packed);
        }
        written = size;
        return nullptr;
    });
    return written;
}

// Null, or what is wrong. `values` and `scales` have the sizes that the header names.
SHEARLING_EXPORT const char* shearling_unpack(const uint8_t* packed, uint64_t size, void* values, void* scales) {
    return guarded([&] {
        PackedMatrix matrix;
        const char* fault = read_matrix(packed, size, false, matrix);
        if (fault == nullptr && (values == nullptr || (matrix.scale_type != ScaleType::none && scales == nullptr))) {
            fault = "nowhere to unpack to";
        }
        if (fault == nullptr) {
            unpack(matrix, values, scales, tbb_threads());
        }
        return fault;
    });
}

// Bytes of the same matrix in the dense encoding, 0 where it is none; `expanded` may be null, then nothing is written.
SHEARLING_EXPORT uint64_t shearling_expand(const uint8_t* packed, uint64_t size, uint8_t* expanded) {
    uint64_t written = 0;
    guarded([&] {
        PackedMatrix matrix;
        const char* const fault = read_matrix(packed, size, false, matrix);
        if (fault == nullptr && expanded != nullptr) {
            expand(matrix, expanded, tbb_threads());
        }
        written = fault == nullptr ? expanded_size(matrix) : 0;
        return fault;
    });
    return written;
}

// Bytes of a matrix as these kernels hold it where a model is loaded, 0 where it is none. `kernels`: null for the best.
SHEARLING_EXPORT uint64_t shearling_held_bytes(const uint8_t* packed, uint64_t size, const char* kernels) {
    uint64_t held = 0;
    guarded([&]() -> const char* {
        PackedMatrix matrix;
        const char* const fault = read_matrix(packed, size, false, matrix);
        const KernelSet* chosen = kernels == nullptr ? &best_kernels() : find_kernels(kernels);
        if (fault == nullptr && chosen != nullptr) {
            held = held_in_pairs(matrix, *chosen) ? paired_size(matrix) : size;
        }
        return fault;
    });
    return held;
}

// y [count, rows] = packed x [count, columns] [+ bias]. `checked`: the matrix passed shearling_validate before. `held`:
// in the encoding in which these kernels hold it where a model is loaded. `kernels`: null for the best. Null, or what
// is wrong.
SHEARLING_EXPORT const char* shearling_matmul(
    const uint8_t* packed, uint64_t size, const float* x, uint64_t count, uint64_t columns, const float* bias, float* y,
    uint64_t rows, int exact, int checked, int held, const char* kernels) {
    return guarded([&]() -> const char* {
        PackedMatrix matrix;
        const char* fault = read_matrix(packed, size, checked != 0, matrix);
        const KernelSet* chosen = kernels == nullptr ? &best_kernels() : find_kernels(kernels);
        if (fault == nullptr && chosen == nullptr) {
            fault = "this processor cannot run these kernels";
        }
        if (fault == nullptr && (matrix.columns != columns || matrix.rows != rows)) {
            fault = "the matrix has another shape";
        }
        if (fault == nullptr && count != 0 && (x == nullptr || y == nullptr)) {
            fault = "no activations or nowhere to write results to";
        }
        if (fault != nullptr) {
            return fault;
        }
        Buffer pairs(0);
        if (held != 0 && held_in_pairs(matrix, *chosen)) {
            pairs.reserve(paired_size(matrix));
            matrix = pair(matrix, pairs.bytes(), tbb_threads());
        }
        const Output output{y, rows, bias, nullptr, 0};
        const Settings settings{*chosen, exact != 0 ? Precision::exact : Precision::automatic, tbb_threads()};
        multiply(&matrix, 1, Rows{x, count, columns}, Norm{nullptr, 0.0f}, &output, settings);
        return nullptr;
    });
}

// Reads memory on all threads, as the kernels do, and does nothing else: the limit of what they can reach. Every piece
// is a parallel loop of its own, as a product is; what remains behind the last whole one is not read. The result means
// nothing.
SHEARLING_EXPORT uint64_t shearling_read_memory(const uint8_t* bytes, uint64_t size, uint64_t piece_bytes) {
    uint64_t sum = 0;
    guarded([&]() -> const char* {
        const size_t shares = std::max<size_t>(1, tbb_threads().count());
        for (size_t piece = 0; piece < (piece_bytes == 0 ? 0 : size / piece_bytes); ++piece) {
            sum ^= read_piece(bytes + piece * piece_bytes, piece_bytes / shares, shares);
        }
        return nullptr;
    });
    return sum;
}

// The instruction set in use.
SHEARLING_EXPORT const char* shearling_kernels() { return best_kernels().name; }
