// Work in phases, each of chunks that any thread may take, on the threads of the calling runtime (TBB).
//
// One parallel loop serves all phases: a loop for each would cost some microseconds a time, more than a small matrix. A thread
// takes the chunks of its own share in order, so that it reads memory in one stream, then what is left of the others'. It
// waits only for chunks that running threads hold, so it cannot wait for ever, and a helper that wakes up late finds the
// current phase.
#pragma once

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>

namespace shearling {

class Phases {
public:
    // `step` has chunks() and run(chunk); it must live until run() returns.
    template <class Step>
    void add(const Step& step) {
        Phase& phase = phases_[count_++];
        phase.chunks = step.chunks();
        phase.step = &step;
        phase.run = [](const void* context, size_t chunk) { static_cast<const Step*>(context)->run(chunk); };
    }

    // `bytes` is about what all phases read and write.
    void run(size_t bytes) {
        // Work below this is done before a second thread has woken up.
        constexpr size_t serial_bytes = size_t{16} << 10;
        const int threads = tbb::this_task_arena::max_concurrency();
        if (threads <= 1 || bytes < serial_bytes) {
            return work(0, 1);
        }
        const int shares = std::min(threads, most_shares);
        tbb::parallel_for(0, threads, [this, shares](int thread) { work(thread % shares, shares); }, tbb::simple_partitioner());
    }

private:
    static constexpr int most_shares = 16;
    static constexpr size_t most_phases = 8;

    struct alignas(64) Counter {
        std::atomic<size_t> value{0};
    };

    struct Phase {
        size_t chunks = 0;
        const void* step = nullptr;
        void (*run)(const void* step, size_t chunk) = nullptr;
        Counter done;
        Counter taken[most_shares];
    };

    void work(int own, int shares) {
        for (size_t index = 0; index < count_; ++index) {
            for (int turn = 0; turn < shares; ++turn) {
                take(phases_[index], static_cast<size_t>((own + turn) % shares), static_cast<size_t>(shares));
            }
            wait(phases_[index]);
        }
    }

    static void take(Phase& phase, size_t share, size_t shares) {
        const size_t first = phase.chunks * share / shares, last = phase.chunks * (share + 1) / shares;
        std::atomic<size_t>& taken = phase.taken[share].value;
        while (first + taken.load(std::memory_order_relaxed) < last) {
            const size_t chunk = first + taken.fetch_add(1, std::memory_order_relaxed);
            if (chunk < last) {
                phase.run(phase.step, chunk);
                phase.done.value.fetch_add(1, std::memory_order_release);
            }
        }
    }

    static void wait(const Phase& phase) {
        constexpr int patience = 4096;
        for (int round = 0; phase.done.value.load(std::memory_order_acquire) < phase.chunks; ++round) {
            if (round < patience) {
#if defined(__x86_64__)
                __builtin_ia32_pause();
#endif
            } else {
                std::this_thread::yield();
            }
        }
    }

    Phase phases_[most_phases];
    size_t count_ = 0;
};

}  // namespace shearling
