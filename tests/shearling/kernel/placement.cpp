// Whether threads copy what they multiply by, and whether many of them give what one does. Prints what is not as it
// should be.
#include "placement.hpp"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "linear.hpp"
#include "own_threads.hpp"

using namespace shearling;

namespace {

constexpr size_t thread_count = 8;
constexpr size_t columns = 512;

int failures = 0;

void expect(bool holds, const std::string& what) {
    if (!holds) {
        std::printf("%s\n", what.c_str());
        ++failures;
    }
}

// Matrices behind each other, as a file has them, of which every row has as many zeros.
struct File {
    std::vector<uint8_t> bytes;
    std::vector<PackedMatrix> matrices;

    File(const std::vector<size_t>& rows, ValueType type, size_t every) {
        for (const size_t count : rows) {
            std::vector<int8_t> values(count * columns);
            for (size_t index = 0; index < values.size(); ++index) {
                values[index] = index % every == 0 ? 1 + index % 7 : 0;
            }
            const size_t group = type == ValueType::int8 ? columns : 64;
            const std::vector<float> scales(count * columns / group, 0.5f);
            const MatrixForm form{type,  every == 1 ? Encoding::dense : Encoding::bitmask, ScaleType::f32, count,
                                  columns, group};
            const PlainMatrix plain{form, values.data(), scales.data()};
            const size_t start = bytes.size();
            bytes.resize(start + packed_size(plain));
            pack(plain, bytes.data() + start);
        }
        bytes.insert(bytes.end(), 256, 7);  // norms
        matrices.resize(rows.size());
        size_t end = 0;
        expect(read_headers(bytes.data(), bytes.size(), rows.size(), matrices.data(), end) == nullptr, "no matrices");
    }
};

// The panels that each thread multiplies by, of every matrix. Nobody goes on before all have begun.
struct Panels {
    const uint8_t* values;
    size_t first, last;
};
std::vector<std::vector<Panels>> multiplied(thread_count);
std::unique_ptr<Gate> gate;

void remember(
    const PackedMatrix& matrix, const Activations&, size_t first, size_t last, const Output&, uint8_t*) {
    std::vector<Panels>& own = multiplied[OwnThreads::current_place()];
    if (own.empty()) {
        gate->pass();
    }
    own.push_back({matrix.values, first, last});
}

KernelSet remembering() {
    KernelSet kernels = portable_kernels;
    kernels.multiply = remember;
    return kernels;
}

template <class Product>
void check_that_readers_copy(const File& file, size_t side_by_side, const Product& product, const std::string& who) {
    multiplied.assign(thread_count, {});
    gate = std::make_unique<Gate>(thread_count);
    const OwnThreads threads(thread_count);
    const KernelSet kernels = remembering();
    product(Settings{kernels, Precision::automatic, threads});
    const Placement placement(file.bytes.data(), file.bytes.size(), file.matrices, side_by_side);
    size_t panels = 0;
    for (size_t place = 0; place < thread_count; ++place) {
        const auto part = placement.part(place, thread_count);
        for (const PackedMatrix& matrix : file.matrices) {
            for (const Panels& read : multiplied[place]) {
                if (read.values != matrix.values) {
                    continue;
                }
                panels += read.last - read.first;
                const auto first = static_cast<size_t>(matrix.panel_values(read.first) - file.bytes.data());
                const auto last = static_cast<size_t>(matrix.panel_values(read.last) - file.bytes.data());
                bool own = false;
                for (const auto& [from, to] : part) {
                    own |= from <= first && last <= to + 64;  // the last line, where sections are not whole ones
                }
                expect(own, who + ": thread " + std::to_string(place) + " reads what another copied");
            }
        }
    }
    size_t all = 0;
    for (const PackedMatrix& matrix : file.matrices) {
        all += matrix.panels();
    }
    expect(panels == all, who + ": panels were not multiplied once");
}

void check_that_parts_are_all(const Placement& placement, size_t size, size_t shares, const std::string& who) {
    std::vector<int> copies(size);
    for (size_t share = 0; share < shares; ++share) {
        for (const auto& [first, last] : placement.part(share, shares)) {
            for (size_t byte = first; byte < last; ++byte) {
                ++copies[byte];
            }
        }
    }
    for (const int count : copies) {
        if (count != 1) {
            return expect(false, who + ": a byte is in " + std::to_string(count) + " parts of " + std::to_string(shares));
        }
    }
}

// Chunks and shares of work are others by many threads, sums are not.
void check_products(const File& file, const std::string& who) {
    std::vector<float> x(3 * columns);
    for (size_t index = 0; index < x.size(); ++index) {
        x[index] = static_cast<float>(index % 29) - 14.0f;
    }
    size_t rows = 0;
    for (const PackedMatrix& matrix : file.matrices) {
        rows += matrix.rows;
    }
    std::vector<std::vector<float>> results;
    const CallingThread one;
    const OwnThreads some(3), many(64);
    for (const Threads* threads : std::vector<const Threads*>{&one, &some, &many}) {
        std::vector<float> y(3 * rows);
        std::vector<Output> outputs;
        size_t first = 0;
        for (const PackedMatrix& matrix : file.matrices) {
            outputs.push_back({y.data() + first, rows, nullptr, nullptr, 0});
            first += matrix.rows;
        }
        multiply(
            file.matrices.data(), outputs.size(), Rows{x.data(), 3, columns}, Norm{nullptr, 0.0f}, outputs.data(),
            Settings{best_kernels(), Precision::automatic, *threads});
        results.push_back(y);
    }
    expect(results[0] == results[1] && results[0] == results[2], who + ": many threads give another product");
}

void check_copy(const File& file, const Placement& placement, const Threads& threads) {
    std::vector<uint8_t> copy(file.bytes.size());
    placement.copy(copy.data(), threads);
    expect(copy == file.bytes, "a copy differs");
}

}  // namespace

int main() {
    std::vector<float> x(columns, 1.0f), y(1 << 16);
    const Rows row{x.data(), 1, columns};
    for (const ValueType type : {ValueType::int8, ValueType::int4}) {
        for (const size_t every : {size_t{1}, size_t{2}}) {
            const std::string kind = type == ValueType::int8 ? "int8" : "int4";
            const std::string who = kind + ", one weight in " + std::to_string(every);
            // Some 300 KiB, so that a chunk is the whole share of a thread.
            const size_t rows = type == ValueType::int8 ? (every == 1 ? 592 : 960) : (every == 1 ? 992 : 1488);

            const File queries({rows, 80, 48}, type, every);
            const Output outputs[3] = {
                {y.data(), 0, nullptr, nullptr, 0}, {y.data(), 0, nullptr, nullptr, 0},
                {y.data(), 0, nullptr, nullptr, 0}};
            check_that_readers_copy(queries, 3, [&](const Settings& settings) {
                multiply(queries.matrices.data(), 3, row, Norm{nullptr, 0.0f}, outputs, settings);
            }, who + ", side by side");

            const File one({rows + 32}, type, every), odd({rows + 5, 17}, type, every);
            check_that_readers_copy(one, 1, [&](const Settings& settings) {
                multiply(one.matrices.data(), 1, row, Norm{nullptr, 0.0f}, outputs, settings);
            }, who + ", alone");

            for (const File* file : {&queries, &one, &odd}) {
                for (const size_t side_by_side : {size_t{0}, size_t{1}, size_t{3}, size_t{9}}) {
                    const Placement placement(file->bytes.data(), file->bytes.size(), file->matrices, side_by_side);
                    for (const size_t shares : {size_t{1}, size_t{2}, size_t{7}, size_t{64}, size_t{1000}}) {
                        check_that_parts_are_all(placement, file->bytes.size(), shares, who);
                    }
                    check_copy(*file, placement, CallingThread());
                    check_copy(*file, placement, OwnThreads(64));
                }
                check_products(*file, who);
                check_that_parts_are_all(
                    Placement(file->bytes.data(), file->bytes.size(), {}, 1), file->bytes.size(), 7, "no matrices");
            }
        }
    }
    return failures == 0 ? 0 : 1;
}
