// Whether threads copy what they multiply by, and whether many of them give what one does. Prints what is not as it
// should be.
#include "placement.hpp"

#include <algorithm>
#include <cstdio>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "linear.hpp"
#include "own_threads.hpp"
#include "pairs.hpp"
#include "weights.hpp"

using namespace shearling;

namespace {

constexpr size_t thread_count = 8;

int failures = 0;

void expect(bool holds, const std::string& what) {
    if (!holds) {
        std::printf("%s\n", what.c_str());
        ++failures;
    }
}

using Shape = std::pair<size_t, size_t>;

// Matrices behind each other, as a file has them or memory, of which every row has as many zeros.
struct Matrices {
    Matrices() = default;
    Matrices(Matrices&&) = default;  // not copied: matrices point into the bytes
    std::vector<uint8_t> bytes;
    std::vector<PackedMatrix> all;
};

Matrices packed(const std::vector<Shape>& shapes, ValueType type, size_t every) {
    Matrices matrices;
    for (const auto& [rows, columns] : shapes) {
        const bool bf16 = type == ValueType::bf16;
        std::vector<int8_t> values(rows * columns * (bf16 ? 2 : 1));
        for (size_t index = 0; index < rows * columns; ++index) {
            values[bf16 ? 2 * index + 1 : index] = index % every == 0 ? 1 + index % 7 : 0;
        }
        const size_t group = bf16 ? 0 : type == ValueType::int8 ? columns : 64;
        const std::vector<float> scales(bf16 ? 0 : rows * columns / group, 0.5f);
        const MatrixForm form{
            type, every == 1 ? Encoding::dense : Encoding::bitmask, bf16 ? ScaleType::none : ScaleType::f32, rows,
            columns, group};
        const PlainMatrix plain{form, values.data(), scales.data()};
        const size_t start = matrices.bytes.size();
        matrices.bytes.resize(start + packed_size(plain));
        pack(plain, matrices.bytes.data() + start);
    }
    matrices.bytes.insert(matrices.bytes.end(), 256, 7);  // norms
    matrices.all.resize(shapes.size());
    size_t end = 0;
    const char* const fault =
        read_headers(matrices.bytes.data(), matrices.bytes.size(), shapes.size(), matrices.all.data(), end);
    expect(fault == nullptr, "matrices were not packed");
    return matrices;
}

Matrices paired(const Matrices& stored) {
    Matrices pairs;
    size_t size = 0;
    for (const PackedMatrix& matrix : stored.all) {
        size += paired_size(matrix);
    }
    pairs.bytes.resize(size);
    size_t place = 0;
    for (const PackedMatrix& matrix : stored.all) {
        pairs.all.push_back(pair(matrix, pairs.bytes.data() + place, CallingThread()));
        place += paired_size(matrix);
    }
    return pairs;
}

// One thread for the work of several.
class InTheirPlace final : public Threads {
public:
    size_t count() const override { return thread_count; }
    void run(size_t count, Task task, void* context) const override { CallingThread().run(count, task, context); }
};

// The panels of every call of a kernel: a chunk, or what it has of a matrix.
struct Panels {
    const uint8_t* values;
    size_t first, last;
};
std::vector<Panels> multiplied;

void remember(const PackedMatrix& matrix, const Activations&, size_t first, size_t last, const Output&, uint8_t*) {
    multiplied.push_back({matrix.values, first, last});
}

KernelSet remembering() {
    KernelSet kernels = portable_kernels;
    kernels.multiply = remember;
    return kernels;
}

// Whether no chunk reads what two threads copy, and all threads have some of every product: as shares have equal
// numbers of chunks, every thread then reads what it copies.
template <class Product>
void check_that_readers_copy(
    const Matrices& matrices, size_t side_by_side, const Product& product, const std::string& who) {
    multiplied.clear();
    const InTheirPlace threads;
    const KernelSet kernels = remembering();
    product(Settings{kernels, Precision::automatic, threads});
    const Placement placement(matrices.bytes.data(), matrices.bytes.size(), matrices.all, side_by_side);
    std::vector<size_t> panels(matrices.all.size());
    std::vector<std::set<size_t>> readers(matrices.all.size());
    for (const Panels& read : multiplied) {
        for (size_t index = 0; index < matrices.all.size(); ++index) {
            const PackedMatrix& matrix = matrices.all[index];
            if (read.values != matrix.values) {
                continue;
            }
            panels[index] += read.last - read.first;
            const auto range = [&](const uint8_t* first, const uint8_t* last) {
                bool owned = first == last;
                for (size_t place = 0; place < thread_count; ++place) {
                    for (const auto& [from, to] : placement.part(place, thread_count)) {
                        // But for the last line, where sections are not whole ones.
                        const uint8_t* const bytes = matrices.bytes.data();
                        if (bytes + from <= first && last <= bytes + to + 64) {
                            owned = true;
                            readers[index].insert(place);
                        }
                    }
                }
                expect(owned, who + ": a chunk is not of one thread");
            };
            range(matrix.panel_values(read.first), matrix.panel_values(read.last));
            range(matrix.panel_scales(read.first), matrix.panel_scales(read.last));
            range(matrix.panel_masks(read.first), matrix.panel_masks(read.last));
        }
    }
    const size_t alone = matrices.all.size() - side_by_side;
    std::set<size_t> together;
    for (size_t index = 0; index < matrices.all.size(); ++index) {
        expect(panels[index] == matrices.all[index].panels(), who + ": panels were not multiplied once");
        expect(index >= alone || readers[index].size() == thread_count, who + ": not everyone reads");
        together.insert(readers[index].begin(), index < alone ? readers[index].begin() : readers[index].end());
    }
    expect(together.size() == thread_count, who + ": not everyone reads what is side by side");
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
            return expect(false, who + ": a byte is in " + std::to_string(count) + " parts");
        }
    }
}

// Chunks and shares of work are others by many threads, sums are not.
void check_products(const Matrices& matrices, const std::string& who) {
    const size_t columns = matrices.all[0].columns;
    std::vector<float> x(3 * columns);
    for (size_t index = 0; index < x.size(); ++index) {
        x[index] = static_cast<float>(index % 29) - 14.0f;
    }
    size_t rows = 0;
    for (const PackedMatrix& matrix : matrices.all) {
        rows += matrix.rows;
    }
    std::vector<std::vector<float>> results;
    const CallingThread one;
    const OwnThreads some(3), many(64);
    for (const Threads* threads : std::vector<const Threads*>{&one, &some, &many}) {
        std::vector<float> y(3 * rows);
        std::vector<Output> outputs;
        size_t first = 0;
        for (const PackedMatrix& matrix : matrices.all) {
            outputs.push_back({y.data() + first, rows, nullptr, nullptr, 0});
            first += matrix.rows;
        }
        multiply(
            matrices.all.data(), outputs.size(), Rows{x.data(), 3, columns}, Norm{nullptr, 0.0f}, outputs.data(),
            Settings{best_kernels(), Precision::automatic, *threads});
        results.push_back(y);
    }
    expect(results[0] == results[1] && results[0] == results[2], who + ": many threads give another product");
}

void check_copy(const Matrices& matrices, const Placement& placement, const Threads& threads) {
    std::vector<uint8_t> copy(matrices.bytes.size());
    placement.copy(copy.data(), threads);
    expect(copy == matrices.bytes, "a copy differs");
}

// Where zeros are put back, matrices that have none are copied as they are, by all threads.
void check_that_what_has_no_zeros_stays(ValueType type, const std::string& who) {
    const std::vector<Shape> shapes = {{1000, 512}, {80, 512}};
    const size_t norms = 256;
    Matrices dense = packed(shapes, type, 1), sparse = packed(shapes, type, 2);
    std::vector<uint8_t> bytes(dense.bytes.begin(), dense.bytes.end() - norms);
    bytes.insert(bytes.end(), sparse.bytes.begin(), sparse.bytes.end() - norms);
    WeightLayout layout;
    for (int kind = 0; kind < 2; ++kind) {
        layout.matrices.insert(layout.matrices.end(), shapes.begin(), shapes.end());
    }
    layout.expanded = true;
    Weights weights;
    const char* const fault = take_weights(bytes.data(), bytes.size(), layout, weights, OwnThreads(thread_count));
    expect(fault == nullptr && weights.rearranged, who + ": weights were not taken");
    std::vector<uint8_t> expected(dense.bytes.begin(), dense.bytes.end() - norms);
    for (const PackedMatrix& matrix : sparse.all) {
        const size_t start = expected.size();
        expected.resize(start + expanded_size(matrix));
        expand(matrix, expected.data() + start, CallingThread());
    }
    expect(
        weights.size == expected.size() && std::equal(expected.begin(), expected.end(), weights.bytes.get()),
        who + ": weights are not those that were taken");
}

void check(ValueType type, size_t every, bool in_pairs, const std::string& who) {
    // Of more than 256 KiB, so that there is a chunk for everyone.
    const size_t hidden = 1024, inner = 1536;
    const std::vector<Shape> queries = {{hidden, hidden}, {80, hidden}, {48, hidden}};
    std::vector<Shape> layer = {{hidden, hidden}, {inner, hidden}, {inner, hidden}, {hidden, inner}};
    layer.insert(layer.end(), queries.begin(), queries.end());
    const auto made = [&](const std::vector<Shape>& shapes) {
        Matrices stored = packed(shapes, type, every);
        return in_pairs ? paired(stored) : std::move(stored);
    };
    std::vector<float> x(inner, 1.0f), y(hidden);
    const Rows row{x.data(), 1, hidden};
    const Norm none{nullptr, 0.0f};
    const std::vector<Output> outputs(3, Output{y.data(), hidden, nullptr, nullptr, 0});

    const Matrices side_by_side = made(queries), alone = made({{hidden, hidden}}), all = made(layer);
    check_that_readers_copy(side_by_side, 3, [&](const Settings& settings) {
        multiply(side_by_side.all.data(), 3, row, none, outputs.data(), settings);
    }, who + ", side by side");
    check_that_readers_copy(alone, 1, [&](const Settings& settings) {
        multiply(alone.all.data(), 1, row, none, outputs.data(), settings);
    }, who + ", alone");
    check_that_readers_copy(all, 3, [&](const Settings& settings) {
        const PackedMatrix* const matrices = all.all.data();
        const Mlp mlp{matrices + 1, matrices + 2, matrices + 3, Function::silu, none};
        const Layer steps{matrices, none, mlp, none, none, matrices + 4, 3};
        multiply(steps, row, row, y.data(), outputs.data(), settings);
    }, who + ", a layer");

    const Matrices odd = made({{hidden + 5, 64}, {17, 64}});
    for (const Matrices* some : {&side_by_side, &odd}) {
        const Matrices& matrices = *some;
        for (const size_t last : {size_t{0}, size_t{1}, size_t{3}, size_t{9}}) {
            const Placement placement(matrices.bytes.data(), matrices.bytes.size(), matrices.all, last);
            for (const size_t shares : {size_t{1}, size_t{2}, size_t{7}, size_t{64}, size_t{3000}}) {
                check_that_parts_are_all(placement, matrices.bytes.size(), shares, who);
            }
            check_copy(matrices, placement, CallingThread());
            check_copy(matrices, placement, OwnThreads(64));
        }
        const Placement unknown(matrices.bytes.data(), matrices.bytes.size(), {}, 1);
        check_that_parts_are_all(unknown, matrices.bytes.size(), 7, who + ", unknown");
        check_copy(matrices, unknown, OwnThreads(7));
        if (!in_pairs) {
            check_products(matrices, who);
        }
    }
}

}  // namespace

int main() {
    check(ValueType::int8, 1, false, "int8");
    check(ValueType::int8, 2, false, "sparse int8");
    check(ValueType::int8, 2, true, "int8 in pairs");
    check(ValueType::int4, 1, false, "int4");
    check(ValueType::int4, 2, false, "sparse int4");
    check(ValueType::int4, 2, true, "int4 in pairs");
    check(ValueType::bf16, 1, false, "bf16");
    check(ValueType::bf16, 2, false, "sparse bf16");
    check_that_what_has_no_zeros_stays(ValueType::int8, "int8");
    check_that_what_has_no_zeros_stays(ValueType::int4, "int4");
    check_that_what_has_no_zeros_stays(ValueType::bf16, "bf16");
    return failures == 0 ? 0 : 1;
}
