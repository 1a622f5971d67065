#include "huge_memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <mutex>
#include <new>
#include <sstream>
#include <string>

namespace shearling {
namespace {

constexpr size_t slab_bytes = size_t{64} << 20;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// Matrices share slabs, since a small one alone would not fill a huge page. What is never touched takes no memory.
class Slab {
public:
    explicit Slab(size_t size) : size_(whole_huge_pages(size)), mapped_(size_ + huge_page) {
        mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapping_ == MAP_FAILED) {
            throw std::bad_alloc();
        }
        start_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(mapping_), huge_page));
        // Refused where the system has no huge pages: then these are ordinary ones.
        static_cast<void>(madvise(start_, size_, MADV_HUGEPAGE));
    }
    ~Slab() { munmap(mapping_, mapped_); }
    Slab(const Slab&) = delete;
    Slab& operator=(const Slab&) = delete;

    uint8_t* take(size_t size) {
        if (size > size_ - used_) {
            return nullptr;
        }
        uint8_t* const place = start_ + used_;
        used_ += round_up(size, 64);
        used_ = std::min(used_, size_);
        return place;
    }

private:
    size_t size_;
    size_t mapped_;
    void* mapping_;
    uint8_t* start_;
    size_t used_ = 0;
};

bool is_file_mapping(uintptr_t first, uintptr_t last) {
    // Not sscanf: since glibc 2.38 it is a symbol that older systems do not have.
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        uintptr_t start = 0, stop = 0;
        const char* const end = line.data() + line.size();
        const char* at = std::from_chars(line.data(), end, start, 16).ptr;
        if (at == end) {
            continue;
        }
        at = std::from_chars(at + 1, end, stop, 16).ptr;
        if (start <= first && last <= stop) {
            std::istringstream fields(std::string(at, end));
            std::string access, offset, device;
            unsigned long inode = 0;
            fields >> access >> offset >> device >> inode;
            return access.compare(0, 2, "r-") == 0 && inode != 0;
        }
    }
    return false;
}

}  // namespace

std::shared_ptr<uint8_t> allocate_huge_pages(size_t size) {
    static std::mutex mutex;
    static std::weak_ptr<Slab> current;
    const std::lock_guard<std::mutex> lock(mutex);
    std::shared_ptr<Slab> slab = current.lock();
    uint8_t* place = slab == nullptr ? nullptr : slab->take(size);
    if (place == nullptr) {
        slab = std::make_shared<Slab>(std::max(size, slab_bytes));
        current = slab;
        place = slab->take(size);
    }
    return std::shared_ptr<uint8_t>(slab, place);
}

std::shared_ptr<uint8_t> allocate_apart(size_t size) {
    const auto slab = std::make_shared<Slab>(size);
    return std::shared_ptr<uint8_t>(slab, slab->take(size));
}

void release_file_pages(const uint8_t* bytes, size_t size) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t first = round_up(reinterpret_cast<uintptr_t>(bytes), page);
    const uintptr_t last = (reinterpret_cast<uintptr_t>(bytes) + size) / page * page;
    if (first < last && is_file_mapping(first, last)) {
        static_cast<void>(madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED));
    }
}

}  // namespace shearling
