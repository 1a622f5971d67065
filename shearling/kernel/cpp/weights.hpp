// What the input `weights` of an operator holds; shearling/kernel/packed_format.py specifies it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "packed_matrix.hpp"
#include "threads.hpp"

namespace shearling {

// Packed matrices of these rows and columns, then vectors of these lengths.
struct WeightLayout {
    std::vector<std::pair<int64_t, int64_t>> matrices;
    std::vector<int64_t> vectors;
    // How many of the last matrices one product multiplies by, one after the other; each of the others is shared out by
    // itself. It says where bytes go, not what they are: layouts may be equal without it.
    size_t side_by_side = 1;
    // Whether zeros are put back when the weights are taken: more bytes to read, nothing to expand at every product.
    bool expanded = false;

    bool operator==(const WeightLayout& other) const {
        return matrices == other.matrices && vectors == other.vectors && expanded == other.expanded;
    }
    bool operator!=(const WeightLayout& other) const { return !(*this == other); }
};

// Weights that were taken.
struct Weights {
    WeightLayout layout;
    // What the matrices lie in: a copy of all or, where some were rearranged, of the matrices alone.
    size_t size = 0;
    std::shared_ptr<const uint8_t> bytes;
    // Whether some are in another encoding than they were stored in.
    bool rearranged = false;
    std::vector<PackedMatrix> matrices;
    std::vector<std::vector<float>> vectors;
};

// Null, or how the bytes differ from the layout; reads headers only.
const char* read_layout(
    const uint8_t* bytes, size_t size, const WeightLayout& layout, std::vector<PackedMatrix>& matrices, size_t& end);

// Copies weights into huge pages, validates the copy completely, and gives the pages of the file that they came from
// back to the system. Matrices are expanded where that is asked for; else those of which no row has more than two
// weights in four columns are paired, if the kernels multiply pairs faster. Null, or what is wrong with them. Throws
// std::bad_alloc.
const char* take_weights(
    const uint8_t* bytes, size_t size, const WeightLayout& layout, Weights& weights, const Threads& threads);

// The same for weights that several models of this process may have: what is there already, byte for byte, is not kept
// again. Null where `fault` says what is wrong with them.
std::shared_ptr<const Weights> share_weights(
    const uint8_t* bytes, size_t size, const WeightLayout& layout, const char*& fault, const Threads& threads);

}  // namespace shearling
