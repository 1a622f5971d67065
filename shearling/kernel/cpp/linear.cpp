#include "linear.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "attention.hpp"
#include "buffer.hpp"
#include "phases.hpp"

namespace shearling {
namespace {

// Taking a chunk costs some 50 ns; one of this size keeps a thread busy for more than a microsecond.
constexpr size_t chunk_bytes = size_t{32} << 10;
constexpr size_t most_chunks_each = 32;

// A multiple of the threads, so that shares are equal, if there are enough.
size_t chunks_for(size_t bytes, size_t most, const Threads& threads) {
    const size_t count = std::max<size_t>(1, threads.count());
    const size_t chunks = std::min({bytes / chunk_bytes, most, most_chunks_each * count});
    return chunks < count ? std::max<size_t>(1, chunks) : chunks / count * count;
}

// Groups of weights are whole blocks of 16 blocks.
bool sums_fit_groups(const PackedMatrix& matrix) { return matrix.groups() == 1 || matrix.group_size % 64 == 0; }

// Blocks of a tiled form that share a sum: a part of a group of weights.
size_t tiled_segment(const PackedMatrix& matrix, Form form, size_t blocks, size_t rows) {
    const size_t most = rows <= tiled_few_rows ? tiled_segment_blocks_for_few_rows : tiled_segment_blocks;
    if (form != Form::tiled_fixed16 || matrix.groups() == 1) {
        const size_t parts = (blocks + most - 1) / most;
        return (blocks + parts - 1) / parts;  // all parts alike, not a small one at the end
    }
    size_t segment = most;
    while (matrix.group_size / 64 % segment != 0) {
        --segment;
    }
    return segment;
}

Form choose_form(const PackedMatrix& matrix, size_t rows, const Settings& settings) {
    const KernelSet& kernels = settings.kernels;
    if (settings.precision == Precision::exact) {
        return Form::plain32;
    }
    // Beyond, the second term of every activation costs more than reading weights of eight bits.
    constexpr size_t few_rows = 2;
    // Below, expanding into memory costs more than tiles save; bytes are multiplied faster without them than pairs of
    // bf16.
    const size_t least_tiled_rows = matrix.value_type == ValueType::bf16 ? few_rows + 1 : 8;
    if (kernels.knows(Form::tiled_once16) && rows >= least_tiled_rows) {
        // For many rows, scaling the sums of every group costs more than scaling the weights once.
        constexpr size_t many_rows = 128;
        const bool scales_weights = rows >= many_rows && matrix.groups() > 1 && matrix.group_size % 4 == 0;
        if (matrix.value_type == ValueType::bf16 || scales_weights) {
            return Form::tiled_once16;
        }
        if (sums_fit_groups(matrix)) {
            return Form::tiled_fixed16;
        }
    }
    if (matrix.value_type == ValueType::bf16) {
        if (rows > few_rows && kernels.knows(Form::once16)) {
            return Form::once16;
        }
        return kernels.knows(Form::wide32) ? Form::wide32 : Form::plain32;
    }
    // Beside the rounding of weights to four bits, that of activations to eight is nothing.
    const size_t least_grouped_rows = matrix.value_type == ValueType::int4 ? 1 : few_rows + 1;
    const bool groups_nest = matrix.groups() == 1 || matrix.group_size % activation_group == 0;
    if (rows >= least_grouped_rows && groups_nest && kernels.knows(Form::grouped8, matrix.value_type)) {
        return Form::grouped8;
    }
    return kernels.knows(Form::fixed16) ? Form::fixed16 : Form::plain32;
}

// Sums of 32 bits hold the products of so many blocks of four columns.
constexpr size_t most_segment_blocks = 16384;

// Of so many blocks that share a scale: as many as a sum holds, and none beyond the end of a group.
size_t segment_of(size_t group_blocks) {
    size_t parts = (group_blocks + most_segment_blocks - 1) / most_segment_blocks;
    while (group_blocks % parts != 0) {
        ++parts;
    }
    return group_blocks / parts;
}

size_t most_rows(Form form, size_t rows, const KernelSet& kernels) {
    switch (form) {
        case Form::fixed16: return kernels.fixed16_rows != 0 ? kernels.fixed16_rows : fixed16_tile;
        case Form::grouped8:
            return kernels.grouped8_rows != 0  ? kernels.grouped8_rows
                   : rows >= least_paired_rows ? paired_tile
                                               : grouped8_tile;
        case Form::once16: return rows <= single_tile ? single_tile : once16_tile;
        case Form::tiled_fixed16: return tiled_fixed16_tile;
        case Form::tiled_once16: return tiled_once16_tile;
        default: return wide32_tile;
    }
}

// Tiles of about equal size: a short last one would be bound by the latency of its few sums.
size_t even_tile(size_t rows, size_t most) {
    const size_t tiles = std::max<size_t>(1, (rows + most - 1) / most);
    return std::max<size_t>(1, (rows + tiles - 1) / tiles);
}

Activations plan(const PackedMatrix& matrix, const Rows& x, const Settings& settings) {
    Activations plan{};
    plan.form = choose_form(matrix, x.count, settings);
    plan.rows = x.count;
    plan.columns = matrix.columns;
    plan.blocks = matrix.blocks();
    plan.plain = x.data;
    plan.plain_stride = x.stride;
    plan.tile = even_tile(x.count, most_rows(plan.form, x.count, settings.kernels));
    if (plan.tiled()) {
        plan.tile = most_rows(plan.form, x.count, settings.kernels);
        const size_t block_columns = plan.form == Form::tiled_fixed16 ? 64 : 32;
        plan.blocks = (matrix.columns + block_columns - 1) / block_columns;
        plan.segment_blocks = tiled_segment(matrix, plan.form, plan.blocks, x.count);
    } else if (plan.form == Form::fixed16) {
        plan.segment_blocks = matrix.groups() == 1 ? std::min(matrix.blocks(), most_segment_blocks)
                                                   : segment_of(matrix.group_size / 4);
    } else if (plan.form == Form::grouped8) {
        plan.segment_blocks = activation_group / 4;
    }
    return plan;
}

bool same_arrangement(const Activations& a, const Activations& b) {
    return a.form == b.form && a.blocks == b.blocks && a.segment_blocks == b.segment_blocks;
}

size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Rows of activations, after their norm and in the arrangements that some matrices want.
class Operand {
public:
    Operand(const Rows& x, const Norm& norm, const PackedMatrix* matrices, size_t count, const Settings& settings)
        : x_(x),
          norm_(norm),
          settings_(settings),
          columns_(matrices[0].columns),
          normalised_(norm.gamma == nullptr ? 0 : x.count * columns_ * sizeof(float)) {
        const Rows source = norm.gamma == nullptr ? x : Rows{normalised_.floats(), x.count, columns_};
        size_t bytes = 0;
        for (size_t index = 0; index < count; ++index) {
            const Activations wanted = plan(matrices[index], source, settings);
            size_t place = 0;
            while (place < plans_.size() && !same_arrangement(plans_[place], wanted)) {
                ++place;
            }
            if (place == plans_.size()) {
                plans_.push_back(wanted);
                bytes += size_of(wanted);
            }
            plan_of_.push_back(place);
            together_ = std::lcm(together_, wanted.form == Form::plain32 ? 1 : wanted.tile);
        }
        memory_.reserve(bytes);
        uint8_t* free = memory_.bytes();
        for (Activations& plan : plans_) {
            plan.terms = free;
            plan.scales = reinterpret_cast<float*>(free + align(plan.term_bytes()));
            plan.sums =
                reinterpret_cast<int32_t*>(free + align(plan.term_bytes()) + align(plan.scale_count() * sizeof(float)));
            free += size_of(plan);
        }
        chunks_ = chunks_for(x.count * columns_ * sizeof(float), tiles(), settings.threads);
    }

    const Activations& of(size_t matrix) const { return plans_[plan_of_[matrix]]; }
    size_t rows() const { return x_.count; }

    size_t chunks() const { return chunks_; }

    // Into how many chunks the units of panels may go that meet it. Tiled rows that the second-level cache does not
    // hold come from beyond it for every chunk, so these are not the smallest then.
    size_t most_chunks(size_t units, const Threads& threads) const {
        constexpr size_t units_each = 4;
        size_t bytes = 0;
        for (const Activations& plan : plans_) {
            bytes = std::max(bytes, plan.tiled() ? plan.term_bytes() : 0);
        }
        if (bytes <= near_bytes) {
            return units;
        }
        const size_t count = std::max<size_t>(1, threads.count());
        return (units / units_each + count) / count * count;
    }

    void run(size_t chunk) const {
        const size_t first = tiles() * chunk / chunks() * together_,
                     last = std::min(x_.count, tiles() * (chunk + 1) / chunks() * together_);
        for (size_t row = first; row < last && norm_.gamma != nullptr; ++row) {
            settings_.kernels.normalise(
                x_.data + row * x_.stride, norm_.gamma, norm_.epsilon, columns_, normalised_.floats() + row * columns_);
        }
        for (const Activations& plan : plans_) {
            if (plan.form != Form::plain32) {
                settings_.kernels.arrange(plan.plain, plan.plain_stride, plan, first, last);
            }
        }
    }

    void fetch(size_t) const {}  // activations are in cache

private:
    size_t tiles() const { return (x_.count + together_ - 1) / together_; }
    static size_t size_of(const Activations& plan) {
        return align(plan.term_bytes()) + align(plan.scale_count() * sizeof(float)) +
               align(plan.sum_count() * sizeof(int32_t));
    }

    Rows x_;
    Norm norm_;
    const Settings& settings_;
    size_t columns_;
    Buffer normalised_;
    Buffer memory_{0};
    std::vector<Activations> plans_;
    std::vector<size_t> plan_of_;
    size_t together_ = 1;  // rows of a tile: they share cache lines, so one thread writes them
    size_t chunks_ = 1;
};

// What multiplying a matrix costs, in bytes of memory traffic: rows beyond a few cost as if they were read.
size_t cost_of(const PackedMatrix& matrix, size_t rows) { return matrix.total_bytes * (1 + rows / 8); }

size_t scratch_for(const PackedMatrix* matrices, size_t count, const Operand& operand) {
    size_t most = 0;
    for (size_t index = 0; index < count; ++index) {
        most = std::max(most, scratch_bytes(matrices[index], operand.of(index)));
    }
    return most;
}

// Fetches the start of a panel, where a reader's own fetching ahead has not begun.
void fetch_start(const PackedMatrix& matrix, size_t panel) {
    constexpr size_t bytes = size_t{4} << 10;  // as far as the readers fetch ahead
    const uint8_t* const values = matrix.panel_values(panel);
    const uint8_t* const masks = matrix.panel_masks(panel);
    for (size_t byte = 0; byte < bytes; byte += 64) {
        __builtin_prefetch(values + byte);
    }
    for (size_t byte = 0; masks != nullptr && byte < bytes / 4; byte += 64) {
        __builtin_prefetch(masks + byte);
    }
}

// Panels in units that chunks do not divide: kernels take two at a time by many rows.
class PanelRange {
public:
    PanelRange(size_t panels, size_t rows) : panels_(panels), unit_(rows >= least_paired_rows ? 2 : 1) {}
    size_t units() const { return (panels_ + unit_ - 1) / unit_; }
    size_t start_of(size_t chunk, size_t chunks) const { return std::min(panels_, units() * chunk / chunks * unit_); }

private:
    size_t panels_;
    size_t unit_;
};

// Matrices times one operand; their panels are one range.
class Product {
public:
    Product(
        const PackedMatrix* matrices, size_t count, const Operand& operand, const Output* outputs,
        const Settings& settings)
        : matrices_(matrices), count_(count), operand_(operand), outputs_(outputs), settings_(settings) {
        for (size_t index = 0; index < count; ++index) {
            panels_ += matrices[index].panels();
            cost_ += cost_of(matrices[index], operand.rows());
        }
        chunks_ = chunks_for(cost_, operand.most_chunks(range().units(), settings.threads), settings.threads);
    }

    size_t cost() const { return cost_; }
    size_t chunks() const { return chunks_; }

    void fetch(size_t chunk) const {
        size_t panel = range().start_of(chunk, chunks());
        for (size_t index = 0; index < count_; ++index) {
            if (panel < matrices_[index].panels()) {
                return fetch_start(matrices_[index], panel);
            }
            panel -= matrices_[index].panels();
        }
    }

    void run(size_t chunk) const {
        const size_t first = range().start_of(chunk, chunks()), last = range().start_of(chunk + 1, chunks());
        Buffer scratch(scratch_for(matrices_, count_, operand_));
        size_t start = 0;
        for (size_t index = 0; index < count_; ++index) {
            const size_t stop = start + matrices_[index].panels();
            const size_t from = std::max(first, start), to = std::min(last, stop);
            if (from < to) {
                if (to == stop && index + 1 < count_) {
                    fetch_start(matrices_[index + 1], 0);
                }
                settings_.kernels.multiply(
                    matrices_[index], operand_.of(index), from - start, to - start, outputs_[index], scratch.bytes());
            }
            start = stop;
        }
    }

private:
    PanelRange range() const { return {panels_, operand_.rows()}; }

    const PackedMatrix* matrices_;
    size_t count_;
    const Operand& operand_;
    const Output* outputs_;
    const Settings& settings_;
    size_t panels_ = 0;
    size_t cost_ = 0;
    size_t chunks_ = 1;
};

// function(gate x) * (up x): both products on the same panels, as few as the second-level cache holds the outputs of,
// and the function while they are there.
class GatedProduct {
public:
    // matrices: up, then gate if there is one. y: [rows][matrices[0].rows]
    GatedProduct(
        const PackedMatrix* matrices, bool gated, Function function, const Operand& operand, float* y,
        const Settings& settings)
        : matrices_(matrices),
          gated_(gated),
          function_(function),
          operand_(operand),
          y_(y),
          settings_(settings),
          chunks_(chunks_for(cost(), operand.most_chunks(range().units(), settings.threads), settings.threads)) {}

    size_t cost() const {
        return cost_of(matrices_[0], operand_.rows()) + (gated_ ? cost_of(matrices_[1], operand_.rows()) : 0);
    }
    size_t chunks() const { return chunks_; }

    void fetch(size_t chunk) const { fetch_start(matrices_[0], range().start_of(chunk, chunks())); }

    void run(size_t chunk) const {
        const size_t first = range().start_of(chunk, chunks()), last = range().start_of(chunk + 1, chunks());
        const size_t panel_bytes = operand_.rows() * panel_rows * sizeof(float);
        const size_t near_pairs = std::max<size_t>(1, near_bytes / (4 * panel_bytes));
        const size_t most = std::min(2 * near_pairs, last - first);
        const Buffer scratch(scratch_for(matrices_, gated_ ? 2 : 1, operand_));
        const Buffer outputs((gated_ ? 2 : 1) * most * panel_bytes);
        for (size_t panel = first; panel < last; panel += most) {
            run_panels(panel, std::min(last, panel + most), outputs.floats(), scratch.bytes());
        }
    }

private:
    PanelRange range() const { return {matrices_[0].panels(), operand_.rows()}; }

    // outputs: room for those of up, then of gate if there is one
    void run_panels(size_t first, size_t last, float* outputs, uint8_t* scratch) const {
        const size_t inner = matrices_[0].rows, rows = operand_.rows();
        const size_t from = first * panel_rows, to = std::min(last * panel_rows, inner), count = to - from;
        const Output up{outputs, count, nullptr, nullptr, 0, from};
        const Output gate{outputs + rows * count, count, nullptr, nullptr, 0, from};
        if (gated_) {
            fetch_start(matrices_[1], first);
        }
        settings_.kernels.multiply(matrices_[0], operand_.of(0), first, last, up, scratch);
        if (gated_) {
            if (last < matrices_[0].panels()) {
                fetch_start(matrices_[0], last);
            }
            settings_.kernels.multiply(matrices_[1], operand_.of(1), first, last, gate, scratch);
        }
        for (size_t row = 0; row < rows; ++row) {
            settings_.kernels.activate(
                function_, (gated_ ? gate : up).at(row, from), gated_ ? up.at(row, from) : nullptr, count,
                y_ + row * inner + from);
        }
    }

    const PackedMatrix* matrices_;
    bool gated_;
    Function function_;
    const Operand& operand_;
    float* y_;
    const Settings& settings_;
    size_t chunks_;
};

// The two halves of an MLP.
class MlpSteps {
public:
    MlpSteps(const Mlp& mlp, const Rows& x, const Output& output, const Settings& settings)
        : first_{*mlp.up, mlp.gate == nullptr ? *mlp.up : *mlp.gate},
          gated_outputs_(x.count * mlp.up->rows * sizeof(float)),
          output_(output),
          operand_(x, mlp.norm, first_, mlp.gate == nullptr ? 1 : 2, settings),
          gated_(first_, mlp.gate != nullptr, mlp.function, operand_, gated_outputs_.floats(), settings),
          inner_(Rows{gated_outputs_.floats(), x.count, mlp.up->rows}, Norm{nullptr, 0.0f}, mlp.down, 1, settings),
          down_(mlp.down, 1, inner_, &output_, settings) {}

    size_t cost() const { return gated_.cost() + down_.cost(); }

    void add_to(Phases& phases) const {
        phases.add(operand_);
        phases.add(gated_);
        phases.add(inner_);
        phases.add(down_);
    }

private:
    PackedMatrix first_[2];
    Buffer gated_outputs_;
    Output output_;
    Operand operand_;
    GatedProduct gated_;
    Operand inner_;
    Product down_;
};

// target = residual + norm(x), row by row; x is normalised where it is.
class NormedSum {
public:
    // Of rows of `columns`, which are as far apart in x and target; nothing to be done where there is no gamma.
    NormedSum(float* x, const Norm& norm, const Rows& residual, size_t columns, float* target, const Settings& settings)
        : x_(x),
          norm_(norm),
          residual_(residual),
          columns_(columns),
          target_(target),
          settings_(settings),
          chunks_(chunks_for(residual.count * columns * sizeof(float), residual.count, settings.threads)) {}

    void add_to(Phases& phases) const {
        if (norm_.gamma != nullptr) {
            phases.add(*this);
        }
    }

    size_t chunks() const { return chunks_; }

    void run(size_t chunk) const {
        const size_t count = residual_.count, last = count * (chunk + 1) / chunks();
        for (size_t row = count * chunk / chunks(); row < last; ++row) {
            float* const x = x_ + row * columns_;
            settings_.kernels.normalise(x, norm_.gamma, norm_.epsilon, columns_, x);
            const float* const residual = residual_.data + row * residual_.stride;
            float* const target = target_ + row * columns_;
            for (size_t column = 0; column < columns_; ++column) {
                target[column] = residual[column] + x[column];
            }
        }
    }

    void fetch(size_t) const {}  // activations are in cache

private:
    float* x_;
    Norm norm_;
    Rows residual_;
    size_t columns_;
    float* target_;
    const Settings& settings_;
    size_t chunks_;
};

bool has_rows(const Rows& x) {
    constexpr size_t most_rows = size_t{1} << 32;
    if (x.count > most_rows) {
        throw std::length_error("too many rows of activations");
    }
    return x.count != 0;
}

// Calls `run(first, last)` for rows that go through all products together: what lies between these stays in the last
// cache then, and a panel still meets enough rows to be worth expanding.
template <class Run>
void for_rows(size_t count, const Run& run) {
    constexpr size_t most_rows = 512;
    const size_t blocks = (count + most_rows - 1) / most_rows;
    for (size_t block = 0; block < blocks; ++block) {
        run(count * block / blocks, count * (block + 1) / blocks);
    }
}

Rows part_of(const Rows& x, size_t first, size_t last) { return {x.data + first * x.stride, last - first, x.stride}; }

Output part_of(const Output& output, size_t first) {
    return {
        output.data + first * output.stride, output.stride, output.bias,
        output.residual == nullptr ? nullptr : output.residual + first * output.residual_stride,
        output.residual_stride};
}

// `attention`: what makes x; null where it is there.
void run_layer(
    const AttentionSteps* attention, const Layer& layer, const Rows& x, const Rows& residual, float* y,
    const Output* z, const Settings& settings) {
    const size_t hidden = layer.projection->rows;
    const bool first_normed = layer.projection_norm.gamma != nullptr, last_normed = layer.mlp_norm.gamma != nullptr;
    Buffer middle(x.count * hidden * sizeof(float));
    Buffer apart(first_normed || last_normed ? x.count * hidden * sizeof(float) : 0);  // what is yet to be normalised
    const Rows h{middle.floats(), x.count, hidden};
    const Operand operand(x, Norm{nullptr, 0.0f}, layer.projection, 1, settings);
    const Output alone{apart.floats(), hidden, nullptr, nullptr, 0};
    const Output to_h{middle.floats(), hidden, nullptr, residual.data, residual.stride};
    const Product projection(layer.projection, 1, operand, first_normed ? &alone : &to_h, settings);
    const NormedSum to_middle(apart.floats(), layer.projection_norm, residual, hidden, middle.floats(), settings);
    const MlpSteps mlp(
        layer.mlp, h, last_normed ? alone : Output{y, hidden, nullptr, h.data, hidden}, settings);
    const NormedSum to_y(apart.floats(), layer.mlp_norm, h, hidden, y, settings);
    size_t cost = projection.cost() + mlp.cost();
    Phases phases;
    if (attention != nullptr) {
        attention->add_to(phases);
        cost += attention->cost();
    }
    phases.add(operand);
    phases.add(projection);
    to_middle.add_to(phases);
    mlp.add_to(phases);
    to_y.add_to(phases);
    if (layer.next_count == 0) {
        return phases.run(cost, settings.threads);
    }
    const Operand for_next(Rows{y, x.count, hidden}, layer.norm, layer.next, layer.next_count, settings);
    const Product next(layer.next, layer.next_count, for_next, z, settings);
    phases.add(for_next);
    phases.add(next);
    phases.run(cost + next.cost(), settings.threads);
}

void run_layer_by_rows(
    const AttentionSteps* attention, const Layer& layer, const Rows& x, const Rows& residual, float* y,
    const Output* z, const Settings& settings) {
    for_rows(x.count, [&](size_t first, size_t last) {
        std::vector<Output> next;
        for (size_t index = 0; index < layer.next_count; ++index) {
            next.push_back(part_of(z[index], first));
        }
        run_layer(
            first == 0 ? attention : nullptr, layer, part_of(x, first, last), part_of(residual, first, last),
            y + first * layer.projection->rows, next.data(), settings);
    });
}

}  // namespace

void multiply(
    const PackedMatrix* matrices, size_t count, const Rows& x, const Norm& norm, const Output* outputs,
    const Settings& settings) {
    if (!has_rows(x)) {
        return;
    }
    const Operand operand(x, norm, matrices, count, settings);
    const Product product(matrices, count, operand, outputs, settings);
    Phases phases;
    phases.add(operand);
    phases.add(product);
    phases.run(product.cost(), settings.threads);
}

void multiply(const Mlp& mlp, const Rows& x, const Output& output, const Settings& settings) {
    if (!has_rows(x)) {
        return;
    }
    for_rows(x.count, [&](size_t first, size_t last) {
        const MlpSteps steps(mlp, part_of(x, first, last), part_of(output, first), settings);
        Phases phases;
        steps.add_to(phases);
        phases.run(steps.cost(), settings.threads);
    });
}

void multiply(
    const Layer& layer, const Rows& x, const Rows& residual, float* y, const Output* z, const Settings& settings) {
    if (has_rows(x)) {
        run_layer_by_rows(nullptr, layer, x, residual, y, z, settings);
    }
}

void multiply(
    const AttentionSteps& attention, const Layer& layer, const Rows& residual, float* y, const Output* z,
    const Settings& settings) {
    const Rows x = attention.output();
    if (has_rows(x)) {
        run_layer_by_rows(&attention, layer, x, residual, y, z, settings);
    } else {
        attention.take_over();
    }
    attention.finish();
}

}  // namespace shearling
