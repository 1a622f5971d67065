#include "weights.hpp"

#include <algorithm>
#include <cstring>

#include "huge_memory.hpp"

namespace shearling {
namespace {

constexpr size_t piece = size_t{2} << 20;  // a huge page

size_t padded(int64_t length) { return (static_cast<size_t>(length) * sizeof(float) + 63) / 64 * 64; }

// By threads, each of which takes its pieces from the file and memory for them from the system.
std::shared_ptr<const uint8_t> copy(const uint8_t* bytes, size_t size, const Threads& threads) {
    struct Copying {
        const uint8_t* source;
        uint8_t* target;
        size_t size;
    };
    const std::shared_ptr<uint8_t> target = allocate_huge_pages(size);
    Copying copying{bytes, target.get(), size};
    threads.run((size + piece - 1) / piece, [](void* context, size_t index) {
        const Copying& all = *static_cast<const Copying*>(context);
        const size_t first = index * piece;
        std::memcpy(all.target + first, all.source + first, std::min(piece, all.size - first));
    }, &copying);
    return target;
}

}  // namespace

const char* read_layout(
    const uint8_t* bytes, size_t size, const WeightLayout& layout, std::vector<PackedMatrix>& matrices, size_t& end) {
    matrices.resize(layout.matrices.size());
    if (const char* fault = read_headers(bytes, size, matrices.size(), matrices.data(), end)) {
        return fault;
    }
    for (size_t index = 0; index < matrices.size(); ++index) {
        const auto [rows, columns] = layout.matrices[index];
        if (matrices[index].rows != static_cast<size_t>(rows) ||
            matrices[index].columns != static_cast<size_t>(columns)) {
            return "a matrix has another shape than its operator names";
        }
    }
    size_t expected = end;
    for (const int64_t length : layout.vectors) {
        expected += padded(length);
    }
    return expected == size ? nullptr : "norm weights and biases have another size than the operator names";
}

const char* take_weights(
    const uint8_t* bytes, size_t size, const WeightLayout& layout, Weights& weights, const Threads& threads) {
    if (size == 0) {
        return "there are no bytes";
    }
    weights.bytes = copy(bytes, size, threads);
    const uint8_t* copy = weights.bytes.get();
    size_t end = 0;
    if (const char* fault = read_layout(copy, size, layout, weights.matrices, end)) {
        return fault;
    }
    for (const PackedMatrix& matrix : weights.matrices) {
        if (const char* fault = validate(matrix, threads)) {
            return fault;
        }
    }
    for (const int64_t length : layout.vectors) {
        std::vector<float> vector(static_cast<size_t>(length));
        std::memcpy(vector.data(), copy + end, vector.size() * sizeof(float));
        for (const float value : vector) {
            if (!(value - value == 0.0f)) {
                return "NaN or infinity in norm weights or biases";
            }
        }
        weights.vectors.push_back(std::move(vector));
        end += padded(length);
    }
    release_file_pages(bytes, size);
    return nullptr;
}

}  // namespace shearling
