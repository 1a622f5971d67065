// Scratch memory that outlives a call: a thread keeps its buffers, so that decoding allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace shearling {

class Buffer {
public:
    // At least `bytes` bytes, aligned to 64; a call within a call gets memory of its own.
    explicit Buffer(size_t bytes) {
        auto& free = free_list();
        if (!free.empty()) {
            memory_ = std::move(free.back());
            free.pop_back();
        }
        reserve(bytes);
    }
    ~Buffer() {
        try {
            free_list().push_back(std::move(memory_));
        } catch (...) {  // no memory to remember it by: it is freed
        }
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // Grows it; what it held is lost.
    void reserve(size_t bytes) {
        if (memory_.size() < bytes + alignment) {
            memory_ = std::vector<uint8_t>(bytes + alignment);
        }
    }

    uint8_t* bytes() const {
        const auto address = reinterpret_cast<uintptr_t>(memory_.data());
        return const_cast<uint8_t*>(memory_.data()) + (alignment - address % alignment) % alignment;
    }
    float* floats() const { return reinterpret_cast<float*>(bytes()); }

private:
    static constexpr size_t alignment = 64;
    static std::vector<std::vector<uint8_t>>& free_list() {
        static thread_local std::vector<std::vector<uint8_t>> buffers;
        return buffers;
    }
    std::vector<uint8_t> memory_;
};

}  // namespace shearling
