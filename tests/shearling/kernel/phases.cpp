// Work in phases by many threads: built with ThreadSanitizer, which fails the program where two meet unordered. Prints
// what is not as it should be.
#include "phases.hpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "own_threads.hpp"

using namespace shearling;

namespace {

constexpr size_t large = size_t{1} << 20;  // bytes of a work that is worth more than one thread

int failures = 0;

void expect(bool holds, const std::string& what) {
    if (!holds) {
        std::printf("%s\n", what.c_str());
        ++failures;
    }
}

// Counts how often each chunk is run, in memory that only phases order.
struct Counting {
    size_t count;
    const Counting* before;
    mutable std::vector<int> runs = std::vector<int>(count);
    mutable std::vector<size_t> places = std::vector<size_t>(count);
    mutable Gate gate{count};
    bool gated = false;
    bool failing = false;

    size_t chunks() const { return count; }
    void fetch(size_t chunk) const { expect(chunk < count, "a chunk that is not there was fetched"); }
    void run(size_t chunk) const {
        if (gated) {
            gate.pass();
        }
        for (size_t index = 0; before != nullptr && index < before->count; ++index) {
            expect(before->runs[index] == 1, "a phase began before another had ended");
        }
        ++runs[chunk];
        places[chunk] = OwnThreads::current_place();
        if (failing && chunk == count / 2) {
            throw std::runtime_error("chunk");
        }
    }
};

void every_chunk_runs_once(const Threads& threads, size_t bytes, const std::string& who) {
    const Counting one{1, nullptr}, few{threads.count() / 2 + 1, &one}, many{1000, &few}, last{threads.count(), &many};
    Phases phases;
    for (const Counting* step : {&one, &few, &many, &last}) {
        phases.add(*step);
    }
    phases.run(bytes, threads);
    for (const Counting* step : {&one, &few, &many, &last}) {
        for (const int runs : step->runs) {
            expect(runs == 1, who + ": a chunk ran " + std::to_string(runs) + " times");
        }
    }
}

// A thread that has no more than its own share to do does it, whoever else is there.
void everyone_takes_their_own_share(const Threads& threads) {
    for (int call = 0; call < 3; ++call) {
        Counting step{threads.count(), nullptr};
        step.gated = true;
        Phases phases;
        phases.add(step);
        phases.run(large, threads);
        for (size_t chunk = 0; chunk < step.count; ++chunk) {
            expect(step.places[chunk] == chunk, "a share went to another thread");
        }
    }
}

// The others take what is left of a share whose thread is slow.
void nobody_waits_for_a_slow_thread() {
    constexpr size_t each = 10, count = 3;
    struct Slow {
        mutable std::atomic<size_t> left{count * each - 1};
        size_t chunks() const { return count * each; }
        void fetch(size_t) const {}
        void run(size_t chunk) const {
            // Its thread goes on when all else is done.
            const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
            while (chunk == each && left != 0 && std::chrono::steady_clock::now() < end) {
                std::this_thread::yield();
            }
            expect(chunk != each || left == 0, "what a slow thread had begun was left to it");
            left -= chunk == each ? 0 : 1;
        }
    };
    const Slow step;
    Phases phases;
    phases.add(step);
    phases.run(large, OwnThreads(count));
}

// Only one of the threads that there could be.
class Lonely final : public Threads {
public:
    size_t count() const override { return 7; }
    void run(size_t, Task task, void* context) const override { task(context, 5); }
};

void what_is_thrown_comes_back(const Threads& threads) {
    Counting step{100, nullptr};
    step.failing = true;
    Phases phases;
    phases.add(step);
    bool thrown = false;
    try {
        phases.run(large, threads);
    } catch (const std::runtime_error&) {
        thrown = true;
    }
    expect(thrown, "what a chunk threw was lost");
    for (const int runs : step.runs) {
        expect(runs == 1, "a chunk beside one that threw did not run");
    }
}

}  // namespace

int main() {
    const OwnThreads many(64), some(3);
    for (const Threads* threads : std::vector<const Threads*>{&many, &some}) {
        every_chunk_runs_once(*threads, large, std::to_string(threads->count()) + " threads");
        everyone_takes_their_own_share(*threads);
        what_is_thrown_comes_back(*threads);
    }
    nobody_waits_for_a_slow_thread();
    every_chunk_runs_once(some, 1, "little work");
    every_chunk_runs_once(CallingThread(), large, "the calling thread");
    every_chunk_runs_once(Lonely(), large, "one of seven threads");
    return failures == 0 ? 0 : 1;
}
