#include "weights.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

#include "huge_memory.hpp"
#include "linear.hpp"
#include "pairs.hpp"
#include "placement.hpp"

namespace shearling {
namespace {

size_t padded(int64_t length) { return (static_cast<size_t>(length) * sizeof(float) + 63) / 64 * 64; }

constexpr size_t piece = size_t{2} << 20;  // a huge page

// By threads, each of which stops at the first difference that anybody has found.
bool equal(const uint8_t* one, const uint8_t* other, size_t size, const Threads& threads) {
    struct Comparison {
        const uint8_t* one;
        const uint8_t* other;
        size_t size;
        std::atomic<bool> differ{false};
    };
    Comparison comparison{one, other, size};
    threads.run((size + piece - 1) / piece, [](void* context, size_t index) {
        Comparison& all = *static_cast<Comparison*>(context);
        const size_t first = index * piece;
        if (!all.differ.load(std::memory_order_relaxed) &&
            std::memcmp(all.one + first, all.other + first, std::min(piece, all.size - first)) != 0) {
            all.differ.store(true, std::memory_order_relaxed);
        }
    }, &comparison);
    return !comparison.differ.load();
}

// Of what is worth comparing: bytes spread over all of them (FNV-1a).
size_t digest(const uint8_t* bytes, size_t size) {
    constexpr size_t samples = 256;
    uint64_t value = 14695981039346656037u;
    for (size_t index = 0; index < samples; ++index) {
        value = (value ^ bytes[index * (size - 1) / (samples - 1)]) * 1099511628211u;
    }
    return static_cast<size_t>(value ^ size);
}

// In which encodings the kernels are to read matrices.
std::vector<Encoding> wanted_encodings(const std::vector<PackedMatrix>& matrices, const WeightLayout& layout) {
    std::vector<Encoding> encodings;
    for (const PackedMatrix& matrix : matrices) {
        encodings.push_back(
            layout.expanded                           ? Encoding::dense
            : held_in_pairs(matrix, best_kernels()) ? Encoding::pairs
                                                      : matrix.encoding);
    }
    return encodings;
}

bool are_in(const std::vector<PackedMatrix>& matrices, const std::vector<Encoding>& encodings) {
    return std::equal(
        matrices.begin(), matrices.end(), encodings.begin(),
        [](const PackedMatrix& matrix, Encoding encoding) { return matrix.encoding == encoding; });
}

size_t size_in(const PackedMatrix& matrix, Encoding encoding) {
    return encoding == matrix.encoding   ? matrix.total_bytes
           : encoding == Encoding::dense ? expanded_size(matrix)
                                         : paired_size(matrix);
}

// The same matrix, of which all bytes lie elsewhere.
PackedMatrix moved(PackedMatrix matrix, const uint8_t* from, const uint8_t* to) {
    for (const uint8_t** place : {&matrix.scales, &matrix.offsets, &matrix.masks, &matrix.values}) {
        *place = *place == nullptr ? nullptr : to + (*place - from);
    }
    return matrix;
}

void move_to(Weights& weights, std::shared_ptr<const uint8_t> bytes) {
    for (PackedMatrix& matrix : weights.matrices) {
        matrix = moved(matrix, weights.bytes.get(), bytes.get());
    }
    weights.bytes = std::move(bytes);
}

// What was rearranged lies apart from others until it is known to stay: what shares pages lives as long.
void settle(Weights& weights, const Threads& threads) {
    if (weights.rearranged) {
        const std::shared_ptr<uint8_t> place = allocate_huge_pages(weights.size);
        Placement(weights.bytes.get(), weights.size, weights.matrices, weights.layout.side_by_side)
            .copy(place.get(), threads);
        move_to(weights, place);
    }
}

// Whether bytes mean the same in both: those of pairs say nothing of what they are.
bool are_alike(const std::vector<PackedMatrix>& one, const std::vector<PackedMatrix>& other) {
    return std::equal(
        one.begin(), one.end(), other.begin(), other.end(), [](const MatrixForm& a, const MatrixForm& b) {
            return a.value_type == b.value_type && a.encoding == b.encoding && a.scale_type == b.scale_type &&
                   a.rows == b.rows && a.columns == b.columns && a.group_size == b.group_size;
        });
}

// Writes a matrix in another encoding, and gives what it is then.
PackedMatrix write_in(Encoding encoding, const PackedMatrix& matrix, uint8_t* target, const Threads& threads) {
    if (encoding == Encoding::pairs) {
        return pair(matrix, target, threads);
    }
    expand(matrix, target, threads);
    PackedMatrix expanded{};
    if (const char* fault = read_header(target, expanded_size(matrix), expanded)) {
        throw std::logic_error(fault);
    }
    return expanded;
}

// Puts matrices in other encodings in the place of what they were copied to.
void rearrange(Weights& weights, const std::vector<Encoding>& encodings, const Threads& threads) {
    size_t size = 0;
    for (size_t index = 0; index < encodings.size(); ++index) {
        size += size_in(weights.matrices[index], encodings[index]);
    }
    const std::shared_ptr<uint8_t> rearranged = allocate_apart(size);
    uint8_t* target = rearranged.get();
    const uint8_t* source = weights.bytes.get();
    for (size_t index = 0; index < encodings.size(); ++index) {
        PackedMatrix& matrix = weights.matrices[index];
        const PackedMatrix stored = matrix;
        if (encodings[index] == stored.encoding) {
            Placement(source, stored.total_bytes, {}, 0).copy(target, threads);
            matrix = moved(stored, source, target);
        } else {
            matrix = write_in(encodings[index], stored, target, threads);
        }
        target += size_in(stored, encodings[index]);
        source += stored.total_bytes;
    }
    weights.bytes = rearranged;
    weights.size = size;
    weights.rearranged = true;
}

// See `take_weights`; what was rearranged is not settled.
const char* take(
    const uint8_t* bytes, size_t size, const WeightLayout& layout, Weights& weights, const Threads& threads) {
    if (size == 0) {
        return "there are no bytes";
    }
    weights.layout = layout;
    weights.size = size;
    // What the file says now may not be what is copied, and decides nothing but where the copy goes, and who makes it.
    std::vector<PackedMatrix> stored;
    size_t stored_end = 0;
    const bool readable = read_layout(bytes, size, layout, stored, stored_end) == nullptr;
    if (!readable) {
        stored.clear();
    }
    const bool stays = !readable || are_in(stored, wanted_encodings(stored, layout));
    const std::shared_ptr<uint8_t> place = stays ? allocate_huge_pages(size) : allocate_apart(size);
    Placement(bytes, size, stored, layout.side_by_side).copy(place.get(), threads);
    weights.bytes = place;
    const uint8_t* const copy = place.get();
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
    const std::vector<Encoding> wanted = wanted_encodings(weights.matrices, layout);
    if (!are_in(weights.matrices, wanted)) {
        rearrange(weights, wanted, threads);
    }
    release_file_pages(bytes, size);
    return nullptr;
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
    const char* const fault = take(bytes, size, layout, weights, threads);
    if (fault == nullptr) {
        settle(weights, threads);
    }
    return fault;
}

std::shared_ptr<const Weights> share_weights(
    const uint8_t* bytes, size_t size, const WeightLayout& layout, const char*& fault, const Threads& threads) {
    static std::mutex mutex;
    static std::unordered_multimap<size_t, std::weak_ptr<const Weights>> known;
    fault = size == 0 ? "there are no bytes" : nullptr;
    if (fault != nullptr) {
        return nullptr;
    }
    const size_t key = digest(bytes, size);
    std::vector<std::shared_ptr<const Weights>> candidates;
    {
        const std::lock_guard<std::mutex> lock(mutex);
        const auto [first, last] = known.equal_range(key);
        for (auto entry = first; entry != last; ++entry) {
            candidates.push_back(entry->second.lock());
        }
    }
    auto made = std::make_shared<Weights>();
    const auto find = [&](const uint8_t* held, size_t held_size) -> std::shared_ptr<const Weights> {
        for (const auto& candidate : candidates) {
            // Norms and biases are not among the bytes of matrices that were rearranged.
            if (candidate != nullptr && candidate->size == held_size && candidate->layout == layout &&
                candidate->rearranged == made->rearranged &&
                (!made->rearranged ||
                 (candidate->vectors == made->vectors && are_alike(candidate->matrices, made->matrices))) &&
                equal(held, candidate->bytes.get(), held_size, threads)) {
                return candidate;
            }
        }
        return nullptr;
    };
    auto found = find(bytes, size);
    if (found == nullptr) {
        fault = take(bytes, size, layout, *made, threads);
        if (fault != nullptr) {
            return nullptr;
        }
    }
    if (found == nullptr && made->rearranged) {
        found = find(made->bytes.get(), made->size);
        if (found == nullptr) {
            settle(*made, threads);
        }
    }
    if (found != nullptr) {
        release_file_pages(bytes, size);
        return found;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (auto entry = known.begin(); entry != known.end();) {
        entry = entry->second.expired() ? known.erase(entry) : std::next(entry);
    }
    known.emplace(key, made);
    return made;
}

}  // namespace shearling
