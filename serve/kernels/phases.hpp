// Work in phases, each of chunks that any thread may take, on the threads of the calling runtime (TBB).
//
// One parallel loop serves all phases: a loop for each would cost some microseconds a time, more than a small matrix. A thread
// takes chunks until a phase has none left and waits only for chunks that running threads hold, so it cannot wait for ever,
// and a helper that wakes up late finds the current phase.
#pragma once

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

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
            return work();
        }
        tbb::parallel_for(0, threads, [this](int) { work(); }, tbb::simple_partitioner());
    }

private:
    struct alignas(64) Phase {
        size_t chunks = 0;
        const void* step = nullptr;
        void (*run)(const void* step, size_t chunk) = nullptr;
        alignas(64) std::atomic<size_t> next{0};
        alignas(64) std::atomic<size_t> done{0};
    };

    void work() {
        for (size_t index = 0; index < count_; ++index) {
            Phase& phase = phases_[index];
            while (phase.next.load(std::memory_order_relaxed) < phase.chunks) {
                const size_t chunk = phase.next.fetch_add(1, std::memory_order_relaxed);
                if (chunk < phase.chunks) {
                    phase.run(phase.step, chunk);
                    phase.done.fetch_add(1, std::memory_order_release);
                }
            }
            wait(phase);
        }
    }

    static void wait(const Phase& phase) {
        constexpr int patience = 4096;
        for (int round = 0; phase.done.load(std::memory_order_acquire) < phase.chunks; ++round) {
            if (round < patience) {
#if defined(__x86_64__)
                __builtin_ia32_pause();
#endif
            } else {
                std::this_thread::yield();
            }
        }
    }

    static constexpr size_t most_phases = 8;
    Phase phases_[most_phases];
    size_t count_ = 0;
};

}  // namespace shearling
