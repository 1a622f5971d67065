// Where weights lie in a machine whose processors have memory of their own (NUMA): a page belongs to the processor that
// writes it first, so every thread copies what it reads in products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "packed_matrix.hpp"
#include "threads.hpp"

namespace shearling {

class Placement {
public:
    // Of `size` bytes that begin with these matrices, whose headers were checked; without matrices, of equal parts. One
    // product multiplies by the last `side_by_side` of them.
    Placement(const uint8_t* bytes, size_t size, const std::vector<PackedMatrix>& matrices, size_t side_by_side);

    // Where one of so many equal shares of a product's panels lies, as ranges of bytes [first, second); those of all
    // shares are all bytes, each once. Panels are taken to be of one length, as they are where every row has as many
    // zeros.
    std::vector<std::pair<size_t, size_t>> part(size_t share, size_t shares) const;

    // Writes all bytes to `target`, those of a part in the place that reads them, if its thread comes before others are
    // done with theirs.
    void copy(uint8_t* target, const Threads& threads) const;

private:
    // What is stored of panels, in their order; `first_panel` is which of their product's the first is. What lies
    // behind it, before the next section, goes with the last panel.
    struct Section {
        size_t first;
        size_t length;
        size_t first_panel;
        size_t panels;
        size_t product_panels;
    };

    const uint8_t* bytes_;
    size_t size_;
    std::vector<Section> sections_;
};

}  // namespace shearling
