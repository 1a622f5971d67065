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

    // A thread's slot in its arena. Where OpenVINO pins threads, it does so by their slots, and it compiles a model in
    // the arena that it infers in.
    void run_in_places(Task task, void* context) const override {
        struct Places {
            Task task;
            void* context;
            size_t count;
        };
        Places places{task, context, count()};
        run(places.count, [](void* all, size_t) {
            const Places& of = *static_cast<const Places*>(all);
            of.task(of.context, static_cast<size_t>(tbb::this_task_arena::current_thread_index()) % of.count);
        }, &places);
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
