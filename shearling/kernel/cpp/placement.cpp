#include "placement.hpp"

#include <algorithm>
#include <cstring>

#include "phases.hpp"

namespace shearling {
namespace {

// Several chunks of every part: of what is left of one that is begun, others may take.
class Copying {
public:
    Copying(const Placement& placement, const uint8_t* source, uint8_t* target, const Threads& threads)
        : placement_(placement), source_(source), target_(target), chunks_(8 * std::max<size_t>(1, threads.count())) {}

    size_t chunks() const { return chunks_; }

    void run(size_t chunk) const {
        for (const auto& [first, last] : placement_.part(chunk, chunks_)) {
            std::memcpy(target_ + first, source_ + first, last - first);
        }
    }

    void fetch(size_t) const {}

private:
    const Placement& placement_;
    const uint8_t* source_;
    uint8_t* target_;
    size_t chunks_;
};

}  // namespace

Placement::Placement(
    const uint8_t* bytes, size_t size, const std::vector<PackedMatrix>& matrices, size_t side_by_side)
    : bytes_(bytes), size_(size) {
    const size_t alone = matrices.size() - std::min(matrices.size(), side_by_side);
    size_t together = 0;
    for (size_t index = alone; index < matrices.size(); ++index) {
        together += matrices[index].panels();
    }
    size_t first_panel = 0;
    for (size_t index = 0; index < matrices.size(); ++index) {
        const PackedMatrix& matrix = matrices[index];
        const size_t panels = matrix.panels();
        const size_t masked_panels = matrix.encoding == Encoding::bitmask ? panels : 0;
        const std::pair<const uint8_t*, size_t> stored[] = {
            {matrix.scales, panels * matrix.panel_scale_bytes()},
            {matrix.offsets, masked_panels * sizeof(uint64_t)},
            {matrix.masks, masked_panels * matrix.blocks() * matrix.mask_bytes()},
            {matrix.values, matrix.value_bytes}};
        for (const auto& [start, length] : stored) {
            if (length > 0) {
                const auto first = static_cast<size_t>(start - bytes);
                sections_.push_back({first, length, first_panel, panels, index < alone ? panels : together});
            }
        }
        first_panel += index < alone ? 0 : panels;
    }
    if (sections_.empty()) {
        sections_.push_back({0, size, 0, size, size});
    }
}

std::vector<std::pair<size_t, size_t>> Placement::part(size_t share, size_t shares) const {
    std::vector<std::pair<size_t, size_t>> ranges;
    for (size_t index = 0; index < sections_.size(); ++index) {
        const Section& section = sections_[index];
        const size_t start = index == 0 ? 0 : section.first;
        const size_t stop = index + 1 < sections_.size() ? sections_[index + 1].first : size_;
        const auto place = [&](size_t border) {
            const size_t panel = section.product_panels * border / shares;
            const size_t within = panel - std::min(panel, section.first_panel);
            return within == 0                ? start
                   : within >= section.panels ? stop
                                              : section.first + section.length / section.panels * within +
                                                    section.length % section.panels * within / section.panels;
        };
        const size_t first = place(share), last = place(share + 1);
        if (first < last) {
            ranges.emplace_back(first, last);
        }
    }
    return ranges;
}

void Placement::copy(uint8_t* target, const Threads& threads) const {
    // Borders between parts are borders between chunks, too: both are between panels, rounded down.
    const Copying copying(*this, bytes_, target, threads);
    Phases phases;
    phases.add(copying);
    phases.run(size_, threads);
}

}  // namespace shearling
