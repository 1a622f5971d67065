#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace shearling {
namespace {

constexpr size_t step_header_words = 16;
constexpr int32_t step_magic = 0x50455453;  // STEP
constexpr int32_t masked_flag = 1, reordered_flag = 2;
constexpr float unseen = -1e30f;  // a score that leaves nothing
// Scores of a chunk: with its keys and values they stay in the second-level cache.
constexpr size_t tile_positions = 256;
static_assert(tile_positions % paired_positions == 0);
constexpr size_t piece_positions = 128;  // appended by one chunk

size_t step_payload(const StepView& step, size_t rotated) {
    return 2 * step.sets * step.table_words(rotated) + (step.mask == nullptr ? 0 : step.batch * step.positions) +
           (step.sources == nullptr ? 0 : step.batch);
}

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

}  // namespace

size_t step_words(const StepView& step, size_t rotated) { return step_header_words + step_payload(step, rotated); }

void write_step(const StepView& step, size_t rotated, const float* const* tables, uint8_t* bytes) {
    int32_t header[step_header_words] = {
        step_magic,
        static_cast<int32_t>(step.batch),
        static_cast<int32_t>(step.rows),
        static_cast<int32_t>(step.positions),
        static_cast<int32_t>(step.tables),
        (step.mask == nullptr ? 0 : masked_flag) | (step.sources == nullptr ? 0 : reordered_flag),
        static_cast<int32_t>(step.sets),
        static_cast<int32_t>(rotated)};
    std::memcpy(bytes, header, sizeof header);
    bytes += sizeof header;
    const auto append = [&](const void* source, size_t count) {
        std::memcpy(bytes, source, count * sizeof(float));
        bytes += count * sizeof(float);
    };
    for (size_t table = 0; table < 2 * step.sets; ++table) {
        append(tables[table], step.table_words(rotated));
    }
    if (step.mask != nullptr) {
        append(step.mask, step.batch * step.positions);
    }
    if (step.sources != nullptr) {
        append(step.sources, step.batch);
    }
}

const char* read_step(const uint8_t* bytes, size_t size, size_t rotated, StepView& step) {
    int32_t header[step_header_words];
    if (size < sizeof header || reinterpret_cast<uintptr_t>(bytes) % sizeof(float) != 0) {
        return "it is too small";
    }
    std::memcpy(header, bytes, sizeof header);
    if (header[0] != step_magic) {
        return "it is not a step";
    }
    if (header[7] < 0 || static_cast<size_t>(header[7]) != rotated) {
        return "it turns another part of a head";
    }
    if (header[1] < 0 || header[2] < 0 || header[3] < header[2] || (header[4] != 1 && header[4] != header[1]) ||
        header[6] <= 0 || static_cast<size_t>(header[6]) > most_angle_sets) {
        return "its sizes contradict each other";
    }
    const int32_t flags = header[5];
    step = {
        static_cast<size_t>(header[1]), static_cast<size_t>(header[2]), static_cast<size_t>(header[3]),
        static_cast<size_t>(header[4]), static_cast<size_t>(header[6]),
        reinterpret_cast<const float*>(bytes + sizeof header), nullptr, nullptr};
    // Every factor is below 2^31 and the width below 2^24, so that only the product of three can overflow.
    constexpr size_t most = size_t{1} << 40;
    if (step.tables * step.rows > most || step.tables * step.rows * rotated > most ||
        step.batch * step.positions > most) {
        return "its sizes are too large";
    }
    const float* rest = step.angles + 2 * step.sets * step.table_words(rotated);
    if ((flags & masked_flag) != 0) {
        step.mask = rest;
        rest += step.batch * step.positions;
    }
    if ((flags & reordered_flag) != 0) {
        step.sources = reinterpret_cast<const int32_t*>(rest);
    }
    return step_words(step, rotated) > size / sizeof(float) ? "it ends early" : nullptr;
}

const char* attention_fault(
    const AttentionShape& shape, const StepView& step, const Rows& qkv, const CacheView& cache) {
    if (qkv.count != step.batch * step.rows) {
        return "the step is of other rows";
    }
    if (cache.next_slots < slots_for(step.positions)) {
        return "the cache has no room";
    }
    if (step.past() != 0 && step.batch != 0) {
        // The last block must be whole.
        const size_t needed = cache_header_bytes + ceil_div(step.past(), block_positions) * shape.block_bytes();
        if (cache.past == nullptr || cache.past_slots * shape.slot_bytes() < needed) {
            return "the cache holds fewer positions than the mask tells of";
        }
        if (step.sources == nullptr && cache.past_batch < step.batch) {
            return "the cache is of fewer sequences";
        }
        for (size_t row = 0; step.sources != nullptr && row < step.batch; ++row) {
            if (step.sources[row] < 0 || static_cast<size_t>(step.sources[row]) >= cache.past_batch) {
                return "a sequence continues one that there is not";
            }
        }
        // The room behind the positions of a text may hold those of an earlier one.
        for (size_t row = 0; row < step.batch; ++row) {
            const size_t sequence = step.sources == nullptr ? row : static_cast<size_t>(step.sources[row]);
            if (holds_fewer(cache, sequence, step.past())) {
                return "the cache holds fewer positions than the mask tells of";
            }
        }
    }
    return nullptr;
}

AttentionPlan::AttentionPlan(
    const AttentionShape& shape, const StepView& step, const Rows& qkv, const CacheView& cache,
    const Settings& settings)
    : shape(shape),
      step(step),
      qkv(qkv),
      cache(cache),
      settings(settings),
      continuation(find_continuation(step, cache)),
      paired(nullptr),
      output(qkv.count * shape.heads * shape.width * sizeof(float)),
      partial(0) {
    // So many queries share what is read of keys and values, and what is made of them.
    constexpr size_t together = 48, together_in_pairs = 96, least_paired = 16, least_split = 64;
    // A guess is read beside the token before it as the token is read alone.
    const size_t rows_that_count = step.rows <= 2 ? 1 : step.rows;
    const bool pairs = settings.precision != Precision::exact &&
                       rows_that_count * shape.group() >= least_paired && shape.width % 32 == 0 &&
                       shape.cache != CacheType::f32;
    paired = pairs ? settings.kernels.paired_attention : nullptr;
    query_rows = std::max<size_t>(1, (paired == nullptr ? together : together_in_pairs) / shape.group());
    splits = 1;
    if (qkv.count != 0 && step.rows <= query_rows) {
        const size_t wanted = ceil_div(2 * settings.threads.count(), sequence_heads()),
                     seen = step.positions - first_seen(0);
        splits = std::max<size_t>(1, std::min(wanted, seen / least_split));
    }
    if (splits > 1) {
        partial.reserve(sequence_heads() * splits * queries() * (shape.width + 16) * sizeof(float));
    }
}

void AttentionPlan::rotate(
    size_t sequence, size_t index, size_t column, const float* gamma, float scale, float* target) const {
    const float* head = row(sequence, index) + column;
    const size_t rotated = shape.turned ? shape.rotated : 0;
    const bool apart = rotated != 0 && shape.interleaved;
    Buffer changed((apart ? 2 : shape.bias != nullptr || gamma != nullptr ? 1 : 0) * shape.width * sizeof(float));
    if (shape.bias != nullptr) {
        for (size_t place = 0; place < shape.width; ++place) {
            changed.floats()[place] = head[place] + shape.bias[column + place];
        }
        head = changed.floats();
    }
    if (gamma != nullptr) {
        settings.kernels.normalise(head, gamma, shape.epsilon, shape.width, changed.floats());
        head = changed.floats();
    }
    for (size_t place = rotated; place < shape.width; ++place) {
        target[place] = scale * head[place];
    }
    if (rotated == 0) {
        return;
    }
    if (apart) {
        // Products of queries and keys do not change with the order that both have.
        float* const halves = changed.floats() + shape.width;
        for (size_t place = 0; place < rotated / 2; ++place) {
            halves[place] = head[2 * place];
            halves[rotated / 2 + place] = head[2 * place + 1];
        }
        head = halves;
    }
    const size_t table = step.table_words(rotated);
    const float* const cosines = step.angles + 2 * shape.angles * table +
                                 ((step.tables == 1 ? 0 : sequence) * step.rows + index) * rotated;
    settings.kernels.attention->rotate(head, cosines, cosines + table, rotated / 2, scale, target);
}

size_t AppendStep::pieces() const {
    return ceil_div(plan_.step.positions - plan_.continuation.kept, piece_positions) + 1;
}

void AppendStep::run(size_t chunk) const {
    const AttentionShape& shape = plan_.shape;
    const StepView& step = plan_.step;
    const size_t sequence = chunk / pieces() / shape.kv_heads, kv_head = chunk / pieces() % shape.kv_heads;
    const size_t source = step.sources == nullptr ? sequence : static_cast<size_t>(step.sources[sequence]);
    // Pieces begin on blocks of keys, the first of them where the cache ends.
    const size_t kept = plan_.continuation.kept, start = kept / block_positions * block_positions,
                 piece = chunk % pieces();
    const size_t first = std::max(kept, start + piece * piece_positions),
                 last = std::min(step.positions, start + (piece + 1) * piece_positions);
    if (first >= last) {
        return;
    }
    uint8_t *const keys = plan_.keys(sequence, kv_head), *const values = plan_.values(sequence, kv_head);
    const size_t past = step.past();
    if (first < past) {
        const size_t until = ceil_div(std::min(last, past), block_positions) * shape.block_bytes(),
                     from = first / block_positions * shape.block_bytes();
        std::memcpy(keys + from, plan_.past_blocks(plan_.heads_before(source, kv_head)) + from, until - from);
        std::memcpy(
            values + from, plan_.past_blocks(plan_.heads_before(source, kv_head + shape.kv_heads)) + from,
            until - from);
    }
    const CacheKernels& kernels = plan_.settings.kernels.attention->of(shape.cache);
    Buffer scratch(shape.width * sizeof(float));
    float* const turned = scratch.floats();
    for (size_t position = std::max(first, past); position < last; ++position) {
        const float* const row = plan_.row(sequence, position - past);
        plan_.rotate(
            sequence, position - past, shape.first_key + kv_head * shape.width, shape.key_gamma, 1.0f, turned);
        const size_t block = position / block_positions * shape.block_bytes(), place = position % block_positions;
        kernels.store_key(turned, shape.width, keys + block, place);
        const size_t first_value = shape.first_value + kv_head * shape.width;
        const float* value = row + first_value;
        if (shape.bias != nullptr) {
            for (size_t column = 0; column < shape.width; ++column) {
                turned[column] = value[column] + shape.bias[first_value + column];
            }
            value = turned;
        }
        kernels.store_value(value, shape.width, values + block, place);
    }
}

void AttendStep::run(size_t chunk) const {
    const AttentionShape& shape = plan_.shape;
    const StepView& step = plan_.step;
    const AttentionKernels& kernels = *plan_.settings.kernels.attention;
    const CacheKernels& cached = kernels.of(shape.cache);
    const size_t split = chunk % plan_.splits, place = chunk / plan_.splits;
    const size_t sequence_head = place / query_chunks(), sequence = sequence_head / shape.kv_heads,
                 kv_head = sequence_head % shape.kv_heads;
    const size_t first_row = place % query_chunks() * plan_.query_rows,
                 last_row = std::min(step.rows, first_row + plan_.query_rows), group = shape.group(),
                 count = (last_row - first_row) * group, width = shape.width;
    // What the first query sees or the last: up to itself, from the start or of its window.
    const size_t seen = step.past() + last_row, first_block = plan_.first_seen(first_row) / block_positions,
                 blocks = ceil_div(seen, block_positions) - first_block;
    const size_t from = (first_block + blocks * split / plan_.splits) * block_positions,
                 to = std::min(seen, (first_block + blocks * (split + 1) / plan_.splits) * block_positions);
    const uint8_t *const keys = plan_.keys(sequence, kv_head), *const values = plan_.values(sequence, kv_head);

    const size_t rows = plan_.paired == nullptr ? count : ceil_div(count, paired_rows) * paired_rows;
    const size_t pairs = plan_.paired == nullptr ? 0 : rows * width / 2 + tile_positions * width;
    Buffer scratch((rows * (2 * width + tile_positions + 2) + pairs) * sizeof(float));
    float* const queries = scratch.floats();
    float* const scores = queries + rows * width;
    float* const sums = scores + rows * tile_positions;
    float* const largest = sums + rows * width;
    float* const totals = largest + rows;
    auto* const query_pairs = reinterpret_cast<uint32_t*>(totals + rows);
    uint32_t *const key_pairs = query_pairs + rows * width / 2,
                    *const value_pairs = key_pairs + tile_positions * width / 2;
    for (size_t index = 0; index < count; ++index) {
        const size_t row = first_row + index / group, head = kv_head * group + index % group;
        plan_.rotate(
            sequence, row, shape.first_query + head * width, shape.query_gamma, shape.scale, queries + index * width);
        largest[index] = unseen;
        totals[index] = 0.0f;
    }
    if (plan_.paired != nullptr) {
        std::memset(queries + count * width, 0, (rows - count) * width * sizeof(float));
        plan_.paired->pairing->pair_numbers(queries, rows * width, query_pairs);
    }
    std::memset(sums, 0, rows * width * sizeof(float));
    const float* const mask = step.mask == nullptr ? nullptr : step.mask + sequence * step.positions;
    for (size_t start = from; start < to; start += tile_positions) {
        const size_t stop = std::min(to, start + tile_positions),
                     tile_blocks = ceil_div(stop - start, block_positions), padded = tile_blocks * block_positions;
        const size_t tile = start / block_positions * shape.block_bytes();
        if (plan_.paired != nullptr) {
            const size_t paired = (stop - start + 1) / 2 * width,
                         whole = ceil_div(stop - start, paired_positions) * paired_positions / 2 * width;
            const CachePairs& pairing = plan_.paired->pairing->of(shape.cache);
            pairing.keys(keys + tile, width, tile_blocks, key_pairs);
            pairing.values(values + tile, width, stop - start, value_pairs);
            std::memset(value_pairs + paired, 0, (whole - paired) * sizeof(uint32_t));
            plan_.paired->score(query_pairs, count, width, key_pairs, tile_blocks, scores, tile_positions);
        } else {
            cached.score(queries, count, width, keys + tile, tile_blocks, scores, tile_positions);
        }
        for (size_t index = 0; index < count; ++index) {
            float* const row = scores + index * tile_positions;
            const size_t query = first_row + index / group, visible = std::min(stop, step.past() + query + 1);
            for (size_t place = visible > start ? visible - start : 0; place < padded; ++place) {
                row[place] = unseen;
            }
            const size_t lowest = plan_.first_seen(query);
            for (size_t place = 0; place < padded && start + place < lowest; ++place) {
                row[place] = unseen;
            }
            for (size_t place = 0; mask != nullptr && start + place < visible; ++place) {
                row[place] = mask[start + place] != 0.0f ? row[place] : unseen;
            }
            const float most = std::max(largest[index], kernels.largest_of(row, padded));
            if (most <= unseen) {
                std::memset(row, 0, padded * sizeof(float));
                continue;
            }
            if (most > largest[index]) {
                const float shrink = largest[index] <= unseen ? 0.0f : std::exp(largest[index] - most);
                for (size_t column = 0; column < width; ++column) {
                    sums[index * width + column] *= shrink;
                }
                totals[index] *= shrink;
                largest[index] = most;
            }
            totals[index] += kernels.exponentiate(row, padded, most);
        }
        if (plan_.paired != nullptr) {
            // Every row in its own place: pairs take half of what the numbers took.
            auto* const weights = reinterpret_cast<uint32_t*>(scores);
            const size_t whole = ceil_div(padded, paired_positions) * paired_positions;
            for (size_t index = 0; index < count; ++index) {
                const size_t first = index * tile_positions;
                std::memset(scores + first + padded, 0, (whole - padded) * sizeof(float));
                plan_.paired->pairing->pair_numbers(scores + first, whole, weights + first);
            }
            plan_.paired->gather(weights, tile_positions, count, value_pairs, stop - start, width, sums);
        } else {
            cached.gather(scores, tile_positions, count, values + tile, stop - start, width, sums);
        }
    }
    if (plan_.splits > 1) {
        float* partial = plan_.partial_of(sequence_head, split);
        for (size_t index = 0; index < count; ++index, partial += width + 16) {
            std::memcpy(partial, sums + index * width, width * sizeof(float));
            partial[width] = largest[index];
            partial[width + 1] = totals[index];
        }
        return;
    }
    for (size_t index = 0; index < count; ++index) {
        const size_t row = first_row + index / group, head = kv_head * group + index % group;
        float* const target = plan_.output.floats() + ((sequence * step.rows + row) * shape.heads + head) * width;
        // A row that sees nothing, as padding does, becomes zero.
        const float factor = totals[index] > 0.0f ? 1.0f / totals[index] : 0.0f;
        for (size_t column = 0; column < width; ++column) {
            target[column] = sums[index * width + column] * factor;
        }
    }
}

void CombineStep::run(size_t sequence_head) const {
    const AttentionShape& shape = plan_.shape;
    const size_t sequence = sequence_head / shape.kv_heads, kv_head = sequence_head % shape.kv_heads,
                 width = shape.width, stride = width + 16;
    for (size_t index = 0; index < plan_.queries(); ++index) {
        float most = unseen, total = 0.0f;
        for (size_t split = 0; split < plan_.splits; ++split) {
            most = std::max(most, plan_.partial_of(sequence_head, split)[index * stride + width]);
        }
        const size_t row = index / shape.group(), head = kv_head * shape.group() + index % shape.group();
        float* const target = plan_.output.floats() + ((sequence * plan_.step.rows + row) * shape.heads + head) * width;
        std::memset(target, 0, width * sizeof(float));
        for (size_t split = 0; split < plan_.splits; ++split) {
            const float* const partial = plan_.partial_of(sequence_head, split) + index * stride;
            const float factor = partial[width] <= unseen ? 0.0f : std::exp(partial[width] - most);
            total += factor * partial[width + 1];
            for (size_t column = 0; column < width; ++column) {
                target[column] += factor * partial[column];
            }
        }
        const float factor = total > 0.0f ? 1.0f / total : 0.0f;
        for (size_t column = 0; column < width; ++column) {
            target[column] *= factor;
        }
    }
}

size_t AttentionSteps::cost() const {
    return plan_.sequence_heads() * plan_.step.positions * 2 * plan_.shape.slot_bytes() * (1 + plan_.step.rows / 8);
}

void AttentionSteps::add_to(Phases& phases) const {
    phases.add(append_);
    phases.add(attend_);
    if (plan_.splits > 1) {
        phases.add(combine_);
    }
}

void AttentionSteps::take_over() const {
    Phases phases;
    phases.add(append_);
    phases.run(cost(), plan_.settings.threads);
}

void AttentionSteps::finish() const { write_headers(plan_.step, plan_.cache, plan_.continuation.parent); }

}  // namespace shearling
