#include "linear.hpp"

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "buffer.hpp"

namespace shearling {
namespace {

// Work below this is done before a second thread has woken up.
constexpr size_t serial_bytes = size_t{16} << 10;
constexpr size_t chunks_per_thread = 4;

// Calls body(first, last) on parts of [0, count); `bytes` is about what all of it reads and writes.
template <class Body>
void parallel_ranges(size_t count, size_t bytes, const Body& body) {
    const auto threads = static_cast<size_t>(tbb::this_task_arena::max_concurrency());
    if (threads <= 1 || count <= 1 || bytes < serial_bytes) {
        return body(size_t{0}, count);
    }
    const size_t wanted = bytes < 16 * serial_bytes ? threads : threads * chunks_per_thread;
    const size_t chunks = std::min(count, wanted);
    tbb::parallel_for(
        size_t{0}, chunks, [&](size_t chunk) { body(count * chunk / chunks, count * (chunk + 1) / chunks); }, tbb::simple_partitioner());
}

Form choose_form(const PackedMatrix& matrix, size_t rows, const Settings& settings) {
    if (settings.precision == Precision::exact || !settings.kernels.quantises) {
        return Form::plain32;
    }
    if (matrix.value_type == ValueType::bf16) {
        return Form::wide32;
    }
    constexpr size_t few_rows = 8;
    const bool groups_nest = matrix.groups() == 1 || matrix.group_size % activation_group == 0;
    return rows <= few_rows || !groups_nest ? Form::fixed16 : Form::grouped8;
}

// Sums of 32 bits hold the products of this many columns.
constexpr size_t most_segment_blocks = 16384;

Activations plan(const PackedMatrix& matrix, const Rows& x, const Settings& settings) {
    Activations plan{};
    plan.form = choose_form(matrix, x.count, settings);
    plan.rows = x.count;
    plan.columns = matrix.columns;
    plan.blocks = matrix.blocks();
    plan.plain = x.data;
    plan.plain_stride = x.stride;
    switch (plan.form) {
        case Form::fixed16:
            plan.tile = fixed16_tile;
            plan.segment_blocks = std::min(matrix.groups() == 1 ? matrix.blocks() : matrix.group_size / 4, most_segment_blocks);
            break;
        case Form::grouped8:
            plan.tile = grouped8_tile;
            plan.segment_blocks = activation_group / 4;
            break;
        default: plan.tile = wide32_tile; break;
    }
    return plan;
}

bool same_arrangement(const Activations& a, const Activations& b) {
    return a.form == b.form && a.blocks == b.blocks && a.segment_blocks == b.segment_blocks && a.plain == b.plain;
}

size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Activations together with the memory they are arranged in.
class Arranged {
public:
    Arranged(const Activations& plan, const Settings& settings) : activations(plan), memory_(size_of(plan)) {
        activations.terms = memory_.bytes();
        activations.scales = reinterpret_cast<float*>(activations.terms + align(plan.term_bytes()));
        activations.sums = reinterpret_cast<int32_t*>(activations.scales + align(plan.scale_count() * sizeof(float)) / sizeof(float));
        if (plan.form != Form::plain32) {
            parallel_ranges(plan.rows, plan.rows * plan.columns * sizeof(float) / 2, [&](size_t first, size_t last) {
                settings.kernels.arrange(plan.plain, plan.plain_stride, activations, first, last);
            });
        }
    }
    Activations activations;

private:
    static size_t size_of(const Activations& plan) {
        return align(plan.term_bytes()) + align(plan.scale_count() * sizeof(float)) + align(plan.sum_count() * sizeof(int32_t));
    }
    Buffer memory_;
};

// Rows after their norm; the rows themselves where there is none.
class Normalised {
public:
    Normalised(const Rows& x, const Norm& norm, size_t columns, const Settings& settings)
        : memory_(norm.gamma == nullptr ? 0 : x.count * columns * sizeof(float)), rows(x) {
        if (norm.gamma == nullptr) {
            return;
        }
        float* normalised = memory_.floats();
        parallel_ranges(x.count, x.count * columns * sizeof(float), [&](size_t first, size_t last) {
            for (size_t row = first; row < last; ++row) {
                settings.kernels.normalise(x.data + row * x.stride, norm.gamma, norm.epsilon, columns, normalised + row * columns);
            }
        });
        rows = {normalised, x.count, columns};
    }

private:
    Buffer memory_;

public:
    Rows rows;
};

// What multiplying a matrix costs, in bytes of memory traffic: rows beyond a few cost as if they were read.
size_t cost_of(const PackedMatrix& matrix, size_t rows) { return matrix.total_bytes * (1 + rows / 8); }

void multiply_arranged(const PackedMatrix* matrices, size_t count, const Activations& x, const Output* outputs, const Settings& settings) {
    size_t panels = 0;
    size_t cost = 0;
    for (size_t index = 0; index < count; ++index) {
        panels += matrices[index].panels();
        cost += cost_of(matrices[index], x.rows);
    }
    parallel_ranges(panels, cost, [&](size_t first, size_t last) {
        Buffer scratch(scratch_bytes(matrices[0]));
        size_t start = 0;
        for (size_t index = 0; index < count; ++index) {
            const size_t stop = start + matrices[index].panels();
            const size_t from = std::max(first, start), to = std::min(last, stop);
            if (from < to) {
                settings.kernels.multiply(matrices[index], x, from - start, to - start, outputs[index], scratch.bytes());
            }
            start = stop;
        }
    });
}

bool runs_here(const KernelSet& kernels) {
#if defined(__x86_64__)
    if (&kernels == &avx512_kernels) {
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni");
    }
    if (&kernels == &avx2_kernels) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    }
#endif
    return &kernels == &portable_kernels;
}

}  // namespace

const KernelSet* find_kernels(const char* name) {
#if defined(__x86_64__)
    for (const KernelSet* kernels : {&avx512_kernels, &avx2_kernels, &portable_kernels}) {
#else
    for (const KernelSet* kernels : {&portable_kernels}) {
#endif
        if (std::strcmp(kernels->name, name) == 0 && runs_here(*kernels)) {
            return kernels;
        }
    }
    return nullptr;
}

const KernelSet& best_kernels() {
    static const KernelSet& best = [&]() -> const KernelSet& {
        const char* forced = std::getenv("SHEARLING_KERNEL");
        for (const char* name : {forced == nullptr ? "avx512" : forced, "avx512", "avx2"}) {
            if (const KernelSet* kernels = find_kernels(name)) {
                return *kernels;
            }
        }
        return portable_kernels;
    }();
    return best;
}

void multiply(const PackedMatrix* matrices, size_t count, const Rows& x, const Norm& norm, const Output* outputs, const Settings& settings) {
    if (x.count == 0) {
        return;
    }
    const Normalised normalised(x, norm, matrices[0].columns, settings);
    for (size_t first = 0; first < count;) {
        const Activations needed = plan(matrices[first], normalised.rows, settings);
        size_t last = first + 1;
        while (last < count && same_arrangement(plan(matrices[last], normalised.rows, settings), needed)) {
            ++last;
        }
        const Arranged arranged(needed, settings);
        multiply_arranged(matrices + first, last - first, arranged.activations, outputs + first, settings);
        first = last;
    }
}

namespace {

// Both products of the first half of an MLP on the same panels, and the function while they are in cache.
void multiply_inner(const Mlp& mlp, const Activations& for_gate, const Activations& for_up, float* gate, float* up, const Settings& settings) {
    const size_t inner = mlp.up->rows;
    const size_t rows = for_up.rows;
    const size_t cost = cost_of(*mlp.up, rows) + (mlp.gate == nullptr ? 0 : cost_of(*mlp.gate, rows));
    parallel_ranges(mlp.up->panels(), cost, [&](size_t first, size_t last) {
        Buffer scratch(scratch_bytes(*mlp.up));
        settings.kernels.multiply(*mlp.up, for_up, first, last, Output{up, inner, nullptr, nullptr, 0}, scratch.bytes());
        if (mlp.gate != nullptr) {
            settings.kernels.multiply(*mlp.gate, for_gate, first, last, Output{gate, inner, nullptr, nullptr, 0}, scratch.bytes());
        }
        const size_t from = first * panel_rows, to = std::min(last * panel_rows, inner);
        for (size_t row = 0; row < rows; ++row) {
            float* const target = up + row * inner + from;
            const float* const activated = mlp.gate == nullptr ? target : gate + row * inner + from;
            settings.kernels.activate(mlp.function, activated, mlp.gate == nullptr ? nullptr : target, to - from, target);
        }
    });
}

}  // namespace

void multiply(const Mlp& mlp, const Rows& x, const Norm& norm, const Output& output, const Settings& settings) {
    if (x.count == 0) {
        return;
    }
    const size_t inner = mlp.up->rows;
    Buffer up(x.count * inner * sizeof(float));
    Buffer gate(mlp.gate == nullptr ? 0 : x.count * inner * sizeof(float));
    {
        const Normalised normalised(x, norm, mlp.up->columns, settings);
        const Activations for_up = plan(*mlp.up, normalised.rows, settings);
        const Arranged arranged(for_up, settings);
        std::optional<Arranged> other;
        if (mlp.gate != nullptr && !same_arrangement(plan(*mlp.gate, normalised.rows, settings), for_up)) {
            other.emplace(plan(*mlp.gate, normalised.rows, settings), settings);
        }
        multiply_inner(mlp, other ? other->activations : arranged.activations, arranged.activations, gate.floats(), up.floats(), settings);
    }
    multiply(mlp.down, 1, Rows{up.floats(), x.count, inner}, Norm{nullptr, 0.0f}, &output, settings);
}

}  // namespace shearling
