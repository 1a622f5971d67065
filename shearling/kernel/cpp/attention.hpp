// Causal attention of grouped queries with rotary embedding, and the cache of its keys and values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.hpp"
#include "cache_header.hpp"
#include "cache_layout.hpp"
#include "linear.hpp"
#include "phases.hpp"

namespace shearling {

// All sizes fit 64 bits with room: what they come from was checked.
struct AttentionShape {
    size_t heads;
    size_t kv_heads;
    size_t width;  // of a head, a multiple of 16
    size_t rotated;  // numbers at the start of a head that angles turn, if any do: an even number
    bool interleaved;  // neighbours are turned together, not a number of one half and the one of the other
    CacheType cache;
    float scale;   // of a product of query and key
    // Columns of a row of activations where queries, keys and values begin.
    size_t first_query;
    size_t first_key;
    size_t first_value;
    size_t window;  // positions that a query sees, with its own; 0: all up to it
    bool turned;    // by angles; else order shows in nothing but the mask
    size_t angles;  // of the step, which turn it
    const float* bias;         // of such a row; null: none
    const float* query_gamma;  // norms of each query and key before they are turned; null: none
    const float* key_gamma;
    float epsilon;

    size_t group() const { return heads / kv_heads; }
    size_t columns() const { return (heads + 2 * kv_heads) * width; }
    size_t slot_bytes() const { return shearling::slot_bytes(cache, width); }
    size_t block_bytes() const { return shearling::block_bytes(cache, width); }
};

// What the layers of one inference share: SparseStep's output. Rows of a batch are rows of the mask.
//
// 32-bit words: magic, batch, rows, positions, tables, flags, sets, rotated, and zeros up to 16 words; then for every
// set of angles cosines and sines, [tables][rows][rotated] each, where tables are 1 or batch; where flags say so the
// mask, [batch][positions] of 0 or 1, and the rows of the batch that the cache is taken from, [batch].
struct StepView {
    size_t batch;
    size_t rows;       // new ones of a sequence
    size_t positions;  // of a sequence, with the new ones
    size_t tables;
    size_t sets;
    const float* angles;
    const float* mask;       // null: nothing is masked but the future
    const int32_t* sources;  // null: every sequence continues itself

    size_t past() const { return positions - rows; }
    size_t table_words(size_t rotated) const { return tables * rows * rotated; }
};

// Slots that a cache must have for so many positions. What is left free holds the header, lets a sequence grow for a
// while without another allocation, and covers the last block where somebody cuts as many slots off as positions.
inline size_t slots_for(size_t positions) {
    constexpr size_t slack = 64, step = 256;
    return (positions + slack + step - 1) / step * step;
}

constexpr size_t most_angle_sets = 8;
size_t step_words(const StepView& step, size_t rotated);
// Writes a step; pointers that are null are not flagged. `bytes` are step_words of four; `tables` are cosines and sines
// of every set, one after the other.
void write_step(const StepView& step, size_t rotated, const float* const* tables, uint8_t* bytes);
// Null, or what is wrong with a step for heads that are turned so far; the view reads `bytes`.
const char* read_step(const uint8_t* bytes, size_t size, size_t rotated, StepView& step);

// Null, or why these do not fit together.
const char* attention_fault(
    const AttentionShape& shape, const StepView& step, const Rows& qkv, const CacheView& cache);

// What the phases of an attention share.
struct AttentionPlan {
    AttentionPlan(
        const AttentionShape& shape, const StepView& step, const Rows& qkv, const CacheView& cache,
        const Settings& settings);

    size_t sequence_heads() const { return step.batch * shape.kv_heads; }
    // The first position that a query of this row sees.
    size_t first_seen(size_t index) const {
        const size_t own = step.past() + index;
        return shape.window == 0 || own < shape.window ? 0 : own + 1 - shape.window;
    }
    size_t head_bytes(size_t slots) const { return slots * shape.slot_bytes(); }
    size_t heads_before(size_t sequence, size_t kv_head) const { return sequence * cache.heads + kv_head; }
    uint8_t* keys(size_t sequence, size_t kv_head) const { return blocks(heads_before(sequence, kv_head)); }
    uint8_t* values(size_t sequence, size_t kv_head) const {
        return blocks(heads_before(sequence, kv_head + shape.kv_heads));
    }
    const uint8_t* past_blocks(size_t heads) const {
        return cache.past + heads * head_bytes(cache.past_slots) + cache_header_bytes;
    }
    uint8_t* blocks(size_t heads) const {
        return cache.next + heads * head_bytes(cache.next_slots) + cache_header_bytes;
    }
    const float* row(size_t sequence, size_t index) const {
        return qkv.data + (sequence * step.rows + index) * qkv.stride;
    }
    // Writes the head of a row that begins at a column: with its bias and norm, turned by its angles and scaled.
    void rotate(
        size_t sequence, size_t index, size_t column, const float* gamma, float scale, float* target) const;

    AttentionShape shape;
    StepView step;
    Rows qkv;
    CacheView cache;
    const Settings& settings;
    Continuation continuation;      // of `past` by `next`
    const PairedAttention* paired;  // null: in f32
    size_t query_rows;              // of a chunk of attention
    size_t splits;                  // of the positions that few queries see
    Buffer output;                  // [batch * rows][heads * width]
    Buffer partial;                 // for every sequence and head of keys, split and query: sums, largest, total
    size_t queries() const { return (query_rows < step.rows ? query_rows : step.rows) * shape.group(); }
    float* partial_of(size_t sequence_head, size_t split) const {
        return partial.floats() + (sequence_head * splits + split) * queries() * (shape.width + 16);
    }
};

// Takes the past over, and appends the new keys and values.
class AppendStep {
public:
    explicit AppendStep(const AttentionPlan& plan) : plan_(plan) {}
    size_t chunks() const { return plan_.sequence_heads() * pieces(); }
    void run(size_t chunk) const;
    void fetch(size_t) const {}

private:
    size_t pieces() const;
    const AttentionPlan& plan_;
};

// softmax(scale Q K') V, for some queries and a part of what they see.
class AttendStep {
public:
    explicit AttendStep(const AttentionPlan& plan) : plan_(plan) {}
    size_t chunks() const { return plan_.sequence_heads() * query_chunks() * plan_.splits; }
    void run(size_t chunk) const;
    void fetch(size_t) const {}

private:
    size_t query_chunks() const { return (plan_.step.rows + plan_.query_rows - 1) / plan_.query_rows; }
    const AttentionPlan& plan_;
};

// Joins the parts of what few queries see.
class CombineStep {
public:
    explicit CombineStep(const AttentionPlan& plan) : plan_(plan) {}
    size_t chunks() const { return plan_.sequence_heads(); }
    void run(size_t chunk) const;
    void fetch(size_t) const {}

private:
    const AttentionPlan& plan_;
};

// To be added to the phases before what reads its output.
class AttentionSteps {
public:
    // Throws std::bad_alloc.
    AttentionSteps(
        const AttentionShape& shape, const StepView& step, const Rows& qkv, const CacheView& cache,
        const Settings& settings)
        : plan_(shape, step, qkv, cache, settings), append_(plan_), attend_(plan_), combine_(plan_) {
        wipe_headers(step, cache);
    }

    // [batch * rows, heads * width]
    Rows output() const { return {plan_.output.floats(), plan_.qkv.count, plan_.shape.heads * plan_.shape.width}; }
    size_t cost() const;
    void add_to(Phases& phases) const;
    // All there is to do where no sequence has rows. Throws std::bad_alloc.
    void take_over() const;
    // Says in the cache what it holds now; to be called when all phases are done.
    void finish() const;

private:
    AttentionPlan plan_;
    AppendStep append_;
    AttendStep attend_;
    CombineStep combine_;
};

}  // namespace shearling
