// Whether a thread of oneTBB keeps its place. Prints what is not as it should be.
#include <tbb/global_control.h>
#include <tbb/task_arena.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <mutex>
#include <thread>

#include "tbb_threads.hpp"

using namespace shearling;

namespace {

// What the threads of some calls had for places.
struct Seen {
    std::mutex mutex;
    std::map<std::thread::id, size_t> place_of;
    std::atomic<size_t> here{0};
    size_t expected = 0;
    bool moved = false, shared = false, outside = false;
};

void look(void* context, size_t place) {
    Seen& seen = *static_cast<Seen*>(context);
    {
        const std::lock_guard<std::mutex> lock(seen.mutex);
        const auto [entry, added] = seen.place_of.emplace(std::this_thread::get_id(), place);
        seen.moved |= entry->second != place;
        seen.outside |= place >= seen.expected;
        for (const auto& [thread, other] : seen.place_of) {
            seen.shared |= thread != entry->first && other == place;
        }
    }
    // For others to come, and take what one thread alone would have done.
    ++seen.here;
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
    while (seen.here < seen.expected && std::chrono::steady_clock::now() < end) {
        std::this_thread::yield();
    }
}

void check(const Threads& threads) {
    Seen seen;
    seen.expected = threads.count();
    for (int call = 0; call < 50; ++call) {
        seen.here = 0;
        threads.run_in_places(look, &seen);
    }
    if (seen.expected != 4 || seen.place_of.size() < 2) {
        std::printf("%zu of %zu threads came\n", seen.place_of.size(), seen.expected);
    }
    if (seen.moved) {
        std::printf("a thread had another place at another call\n");
    }
    if (seen.shared) {
        std::printf("two threads had one place\n");
    }
    if (seen.outside) {
        std::printf("a place is not below the count of threads\n");
    }
}

}  // namespace

int main() {
    const tbb::global_control more_than_here(tbb::global_control::max_allowed_parallelism, 4);
    tbb::task_arena arena(4);
    arena.execute([] {
        check(tbb_threads());
        check(isolated_tbb_threads());
    });
}
