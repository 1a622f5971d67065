// Scratch memory that outlives a call: a thread keeps its buffers, so that decoding allocates nothing. What a long
// prompt took is given back once the calls behind it need far less; it lies in huge pages, since it is read in steps
// that are far apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "huge_memory.hpp"

namespace shearling {

class Buffer {
public:
    // At least `bytes` bytes, aligned to 64; a call within a call gets memory of its own.
    explicit Buffer(size_t bytes) { reserve(bytes); }
    ~Buffer() {
        if (memory_.size == 0) {
            return;
        }
        memory_.oversized = used_ < memory_.size / far_less ? memory_.oversized + 1 : 0;
        if (memory_.size > least_given_back && memory_.oversized >= patience) {
            return;
        }
        try {
            free_list().push_back(std::move(memory_));
        } catch (...) {  // no memory to remember it by: it is freed
        }
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // Grows it; what it held is lost.
    void reserve(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
        // Of its own and exactly as large, so that nothing can be written behind it unseen.
        exact_.reset(static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{alignment})));
        used_ = bytes;
        return;
#endif
        auto& free = free_list();
        if (bytes > 0 && memory_.size == 0 && !free.empty()) {
            memory_ = std::move(free.back());
            free.pop_back();
        }
        used_ = bytes > used_ ? bytes : used_;
        if (bytes > 0 && memory_.size < bytes + alignment) {
            memory_ = {};  // before there is more
            const size_t size = bytes + alignment;
            memory_ = size < least_huge ? Memory{allocate_small(size), size, 0}
                                        : Memory{allocate_apart(size), whole_huge_pages(size), 0};
        }
    }

    uint8_t* bytes() const {
#if defined(__SANITIZE_ADDRESS__)
        return exact_.get();
#endif
        uint8_t* const start = memory_.bytes.get();
        return start + (alignment - reinterpret_cast<uintptr_t>(start) % alignment) % alignment;
    }
    float* floats() const { return reinterpret_cast<float*>(bytes()); }

private:
    static constexpr size_t alignment = 64;
    // A prompt is read in many calls, and a token takes some three for each layer: within a token or two all is back.
    static constexpr size_t least_given_back = size_t{1} << 20, far_less = 8, patience = 32;

    // Rows of a prompt; less would waste most of a huge page, in every thread.
    static constexpr size_t least_huge = size_t{1} << 20;

    struct Memory {
        std::shared_ptr<uint8_t> bytes;
        size_t size = 0;
        size_t oversized = 0;  // calls in a row that used far less of it
    };
    static std::shared_ptr<uint8_t> allocate_small(size_t size) {
        return {new uint8_t[size], std::default_delete<uint8_t[]>()};
    }
    static std::vector<Memory>& free_list() {
        static thread_local std::vector<Memory> buffers;
        return buffers;
    }
    Memory memory_;
    size_t used_ = 0;
#if defined(__SANITIZE_ADDRESS__)
    struct Aligned {
        void operator()(uint8_t* memory) const { ::operator delete(memory, std::align_val_t{alignment}); }
    };
    std::unique_ptr<uint8_t, Aligned> exact_;
#endif
};

}  // namespace shearling
