// In place of huge pages, whose ends a sanitizer does not see: memory of exactly the size that was asked for.
#include <new>

#include "huge_memory.hpp"

namespace shearling {

std::shared_ptr<uint8_t> allocate_huge_pages(size_t size) {
    constexpr std::align_val_t alignment{64};
    auto* place = static_cast<uint8_t*>(::operator new(size, alignment));
    return {place, [](uint8_t* memory) { ::operator delete(memory, alignment); }};
}

std::shared_ptr<uint8_t> allocate_apart(size_t size) { return allocate_huge_pages(size); }

void release_file_pages(const uint8_t*, size_t) {}

}  // namespace shearling
