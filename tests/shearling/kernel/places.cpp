// Whether a thread of oneTBB keeps its place. Prints what is not as it should be.
#include <tbb/global_control.h>
#include <tbb/task_arena.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "tbb_threads.hpp"

using namespace shearling;

namespace {

constexpr size_t thread_count = 4;

using Places = std::map<std::thread::id, size_t>;

// What places the threads of one call had.
struct Call {
    std::mutex mutex;
    Places places;
    std::atomic<size_t> here{0};
};

void look(void* context, size_t place) {
    Call& call = *static_cast<Call*>(context);
    {
        const std::lock_guard<std::mutex> lock(call.mutex);
        const auto [entry, added] = call.places.emplace(std::this_thread::get_id(), place);
        if (!added && entry->second != place) {
            std::printf("a thread changed its place within a call\n");
        }
    }
    // For others to come, and take what one thread alone would have done.
    ++call.here;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    while (call.here < thread_count && std::chrono::steady_clock::now() < end) {
        std::this_thread::yield();
    }
}

// Of calls to which all threads came: between two of these nobody could take the place of one that was away.
void check(const Threads& threads) {
    Places before;
    size_t whole_calls = 0;
    for (int count = 0; count < 40 && (whole_calls > 0 || count < 10); ++count) {
        Call call;
        threads.run_in_places(look, &call);
        if (call.places.size() != thread_count) {
            before.clear();
            continue;
        }
        ++whole_calls;
        std::set<size_t> places;
        for (const auto& [thread, place] : call.places) {
            places.insert(place);
        }
        if (places.size() != thread_count || *places.rbegin() != thread_count - 1) {
            std::printf("threads at once do not have a place each\n");
        }
        if (!before.empty() && before != call.places) {
            std::printf("a thread had another place at the next call\n");
        }
        before = call.places;
    }
    if (threads.count() != thread_count || whole_calls < 2) {
        std::printf("all %zu threads came to %zu calls\n", threads.count(), whole_calls);
    }
}

}  // namespace

int main() {
    const tbb::global_control more_than_here(tbb::global_control::max_allowed_parallelism, thread_count);
    tbb::task_arena arena(thread_count);
    arena.execute([] {
        check(tbb_threads());
        check(isolated_tbb_threads());
    });
}
