#include "tbb_threads.hpp"

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

namespace shearling {
namespace {

class TbbThreads : public Threads {
public:
    size_t count() const override { return static_cast<size_t>(tbb::this_task_arena::max_concurrency()); }

    void run(size_t count, Task task, void* context) const override {
        tbb::parallel_for(
            size_t{0}, count, [task, context](size_t index) { task(context, index); }, tbb::simple_partitioner());
    }
};

class IsolatedTbbThreads final : public TbbThreads {
public:
    void run(size_t count, Task task, void* context) const override {
        tbb::this_task_arena::isolate([&] { TbbThreads::run(count, task, context); });
    }
};

}  // namespace

const Threads& tbb_threads() {
    static const TbbThreads threads;
    return threads;
}

const Threads& isolated_tbb_threads() {
    static const IsolatedTbbThreads threads;
    return threads;
}

}  // namespace shearling
