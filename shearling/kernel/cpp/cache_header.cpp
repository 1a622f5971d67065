#include "cache_header.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>

#include "attention.hpp"

namespace shearling {
namespace {

struct CacheHeader {
    uint64_t stamp;   // of this writing
    uint64_t parent;  // stamp of what its first positions were taken over from; 0: of nothing
    uint64_t self;    // address of this cache
    uint32_t positions;
    uint32_t slots;     // it was laid out for: memory outlives a layout
    uint32_t sequence;  // of the batch
    uint32_t shared;    // positions that were taken over
};
static_assert(sizeof(CacheHeader) <= cache_header_bytes);

uint64_t address_of(const void* memory) { return reinterpret_cast<uintptr_t>(memory); }

// Never the same again, and unlikely to be in memory that nobody wrote.
uint64_t new_stamp() {
    static std::atomic<uint64_t> next{[] {
        std::random_device device;
        return static_cast<uint64_t>(device()) << 32 | device();
    }()};
    return next.fetch_add(1, std::memory_order_relaxed);
}

size_t header_place(const CacheView& cache, size_t slots, size_t sequence) {
    return sequence * cache.heads * slots * cache.slot_bytes;
}

CacheHeader header_of(const CacheView& cache, const uint8_t* memory, size_t slots, size_t sequence) {
    CacheHeader header;
    std::memcpy(&header, memory + header_place(cache, slots, sequence), sizeof header);
    return header;
}

bool is_believed(const CacheHeader& header, const uint8_t* memory, size_t slots, size_t sequence) {
    return header.self == address_of(memory) && header.slots == slots && header.sequence == sequence;
}

}  // namespace

bool holds_fewer(const CacheView& cache, size_t sequence, size_t positions) {
    const CacheHeader header = header_of(cache, cache.past, cache.past_slots, sequence);
    return header.stamp != 0 && header.positions < positions;
}

Continuation find_continuation(const StepView& step, const CacheView& cache) {
    Continuation found{0, 0};
    if (step.past() == 0 || step.sources != nullptr || cache.past_batch != step.batch) {
        return found;
    }
    for (size_t sequence = 0; sequence < step.batch; ++sequence) {
        const CacheHeader past = header_of(cache, cache.past, cache.past_slots, sequence),
                          next = header_of(cache, cache.next, cache.next_slots, sequence);
        // All sequences of a cache are written at once: they have one stamp.
        if (!is_believed(past, cache.past, cache.past_slots, sequence) || past.positions < step.past() ||
            (sequence != 0 && past.stamp != found.parent)) {
            return {0, 0};
        }
        const bool holds =
            is_believed(next, cache.next, cache.next_slots, sequence) && next.stamp == past.parent;
        const size_t alike = holds ? std::min({size_t{next.positions}, size_t{past.shared}, step.past()}) : 0;
        found = {past.stamp, sequence == 0 ? alike : std::min(found.kept, alike)};
    }
    return found;
}

void claim(const StepView& step, const CacheView& first, size_t layers, size_t layer_heads) {
    if (is_believed(header_of(first, first.next, first.next_slots, 0), first.next, first.next_slots, 0)) {
        return;
    }
    CacheView layer = first;
    for (size_t index = 0; index < layers; ++index) {
        wipe_headers(step, layer);
        layer.next += layer_heads * layer.next_slots * layer.slot_bytes;
    }
}

void wipe_headers(const StepView& step, const CacheView& cache) {
    for (size_t sequence = 0; sequence < step.batch; ++sequence) {
        std::memset(cache.next + header_place(cache, cache.next_slots, sequence), 0, sizeof(CacheHeader));
    }
}

void write_headers(const StepView& step, const CacheView& cache, uint64_t parent) {
    CacheHeader header{};
    header.stamp = new_stamp();
    header.parent = parent;
    header.self = address_of(cache.next);
    header.positions = static_cast<uint32_t>(step.positions);
    header.slots = static_cast<uint32_t>(cache.next_slots);
    header.shared = static_cast<uint32_t>(step.past());
    for (size_t sequence = 0; sequence < step.batch; ++sequence) {
        header.sequence = static_cast<uint32_t>(sequence);
        std::memcpy(cache.next + header_place(cache, cache.next_slots, sequence), &header, sizeof header);
    }
}

}  // namespace shearling
