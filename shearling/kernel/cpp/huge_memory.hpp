// Memory in huge pages, for weights and for what a prompt takes: reading a token's weights crosses far more pages than
// a processor has translations for, and with pages of 4 KiB the walks cost a third of the bandwidth (measured: 25
// against 37 GB/s).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace shearling {

// `size` bytes, aligned to 64, in huge pages where the system gives them. Throws std::bad_alloc.
std::shared_ptr<uint8_t> allocate_huge_pages(size_t size);

// The same in a mapping of its own, which goes back to the system as soon as nobody holds it; all of its huge pages may
// be used.
std::shared_ptr<uint8_t> allocate_apart(size_t size);

constexpr size_t huge_page = size_t{2} << 20;
constexpr size_t whole_huge_pages(size_t size) { return (size + huge_page - 1) / huge_page * huge_page; }

// Gives the pages of a read-only mapping of a file back to the system, which can read them again; other memory is left
// alone.
void release_file_pages(const uint8_t* bytes, size_t size);

}  // namespace shearling
