// Work in phases, each of chunks that any thread may take.
//
// One parallel loop serves all phases: a loop for each would cost some microseconds a time, more than a small matrix.
// Every place of a thread (threads.hpp) has a share. A thread takes the chunks of its own in order, so that it reads
// memory in one stream, and the same memory at every call; then shares that nobody has begun, since fewer threads may
// run than there are shares; then what is left of the others'. It waits only for chunks that running threads hold, so
// it cannot wait for ever, and a helper that wakes up late finds the current phase. What a chunk throws is thrown by
// run() once all threads have come back.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>

#include "buffer.hpp"
#include "threads.hpp"

namespace shearling {

class Phases {
public:
    // `step` has chunks(), run(chunk) and fetch(chunk), which may fetch what a chunk reads first; it must live until
    // run() returns.
    template <class Step>
    void add(const Step& step) {
        Phase& phase = phases_[count_++];
        phase.chunks = step.chunks();
        phase.step = &step;
        phase.run = [](const void* context, size_t chunk) { static_cast<const Step*>(context)->run(chunk); };
        phase.fetch = [](const void* context, size_t chunk) { static_cast<const Step*>(context)->fetch(chunk); };
    }

    // `bytes` is about what all phases read and write.
    void run(size_t bytes, const Threads& threads) {
        // Work below this is done before a second thread has woken up.
        constexpr size_t serial_bytes = size_t{16} << 10;
        shares_ = bytes < serial_bytes ? 1 : std::max<size_t>(1, threads.count());
        const Buffer counters(shares_ * sizeof(Share));
        taken_ = reinterpret_cast<Share*>(counters.bytes());
        std::uninitialized_value_construct_n(taken_, shares_);
        if (shares_ == 1) {
            work(0);
        } else {
            threads.run_in_places(
                [](void* phases, size_t place) { static_cast<Phases*>(phases)->work(place); }, this);
        }
        if (fault_ != nullptr) {
            std::rethrow_exception(fault_);
        }
    }

private:
    static constexpr size_t most_phases = 14;

    struct alignas(64) Phase {
        size_t chunks = 0;
        const void* step = nullptr;
        void (*run)(const void* step, size_t chunk) = nullptr;
        void (*fetch)(const void* step, size_t chunk) = nullptr;
        std::atomic<size_t> done{0};  // chunks
    };

    // How many chunks of a share were taken, in each phase.
    struct alignas(64) Share {
        std::atomic<uint32_t> taken[most_phases] = {};
    };

    void work(size_t place) {
        fetch(0, place);
        fetch(1, place);
        for (size_t index = 0; index < count_; ++index) {
            take(index, place, true);
            for (const bool begun : {false, true}) {
                for (size_t turn = 1; turn < shares_ && !finished(phases_[index]); ++turn) {
                    take(index, (place + turn) % shares_, begun);
                }
            }
            fetch(index + 2, place);
            wait(phases_[index]);
        }
    }

    // A phase of products follows one that arranges their operand, so what is fetched has that long to come. Who comes
    // when all is done has nothing to read.
    void fetch(size_t index, size_t place) const {
        if (index < count_ && !finished(phases_[index])) {
            const Phase& phase = phases_[index];
            const size_t first = phase.chunks * place / shares_;
            if (first < phase.chunks) {
                phase.fetch(phase.step, first);
            }
        }
    }

    // `begun`: also of a share that a thread has taken chunks of.
    void take(size_t index, size_t share, bool begun) {
        Phase& phase = phases_[index];
        const size_t first = phase.chunks * share / shares_, last = phase.chunks * (share + 1) / shares_;
        if (first == last) {
            return;
        }
        std::atomic<uint32_t>& taken = taken_[share].taken[index];
        if (!begun && taken.load(std::memory_order_relaxed) != 0) {
            return;
        }
        size_t ran = 0;
        while (first + taken.load(std::memory_order_relaxed) < last) {
            const size_t chunk = first + taken.fetch_add(1, std::memory_order_relaxed);
            if (chunk < last) {
                run_chunk(phase, chunk);
                ++ran;
            }
        }
        if (ran != 0) {
            phase.done.fetch_add(ran, std::memory_order_release);
        }
    }

    void run_chunk(const Phase& phase, size_t chunk) {
        try {
            phase.run(phase.step, chunk);
        } catch (...) {
            if (!failed_.test_and_set()) {
                fault_ = std::current_exception();
            }
        }
    }

    static bool finished(const Phase& phase) {
        return phase.done.load(std::memory_order_acquire) == phase.chunks;
    }

    static void wait(const Phase& phase) {
        constexpr int patience = 4096;
        for (int round = 0; !finished(phase); ++round) {
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
    Share* taken_ = nullptr;
    size_t shares_ = 1;
    std::atomic_flag failed_ = ATOMIC_FLAG_INIT;
    std::exception_ptr fault_;
};

}  // namespace shearling
