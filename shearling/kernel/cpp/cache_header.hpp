// What a cache says of itself, so that a step need not copy all of it.
//
// A runtime writes a variable to two caches in turn. The one that a step writes to holds what the step before the last
// left there: most of what it would be given. Its header says so, in the first slot of a sequence:
//
// - Every writing has a stamp of its own, and names the one that it took its first `shared` positions over from.
// - A header is believed where it was written and in the layout it was written for alone: what a state was saved to,
//   copied over or cut to says nothing.
// - It is wiped before the first position is written, and written when all are: what failed says nothing.
//
// - Layers follow each other in the memory, and in another layout elsewhere: what is written in one reaches into what
//   others hold in another, whose headers may lie between. So the very first header speaks for the layout of all, and
//   where it does not, all that are to be are wiped before anything is written.
//
// So behind a header that is believed lie the positions of its writing. If `past` took `shared` positions over from the
// writing that `next` holds, both hold the same in so many of them as that one has. A text may have fewer positions
// than `past`, as after a wrong guess; then it takes over so many, and its own header says no more.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shearling {

struct StepView;

// What a head's slots begin with: a cache line.
constexpr size_t cache_header_bytes = 64;

// A cache: for every sequence 2 kv_heads of each layer times `slots` slots. A head's begin with a header (in the first
// head of a layer of each sequence, else unused); blocks follow (cache_layout.hpp), of keys in the earlier heads
// of the layer and of values in the later ones. A view is of one layer, and begins there.
struct CacheView {
    const uint8_t* past;  // as it was; null: nothing
    size_t past_slots;
    size_t past_batch;
    uint8_t* next;  // as it becomes: all that is needed of `past` is taken over
    size_t next_slots;
    size_t heads;  // of keys and values, of all layers: from one sequence to the next
    size_t slot_bytes;
};

// Whether a sequence of `past` says that it holds fewer positions than these; a wiped header says nothing.
bool holds_fewer(const CacheView& cache, size_t sequence, size_t positions);

// How `next` goes on from `past`.
struct Continuation {
    uint64_t parent;  // stamp of `past`; 0: nobody knows what that is
    size_t kept;      // positions that `next` holds already
};
Continuation find_continuation(const StepView& step, const CacheView& cache);

// Makes the memory that begins with `first.next` ready for `layers` layers of `layer_heads` heads, before the first of
// them is written.
void claim(const StepView& step, const CacheView& first, size_t layers, size_t layer_heads);

// Of `next`.
void wipe_headers(const StepView& step, const CacheView& cache);
void write_headers(const StepView& step, const CacheView& cache, uint64_t parent);

}  // namespace shearling
