// The threads of the runtime that calls: the kernels start none of their own.
#pragma once

#include <cstddef>

namespace shearling {

class Threads {
public:
    using Task = void (*)(void* context, size_t index);

    virtual ~Threads() = default;

    // The most that may run at once.
    virtual size_t count() const = 0;

    // Calls task(context, index) for every index below `count`, in any order and on as many threads as are free. A task
    // throws nothing.
    virtual void run(size_t count, Task task, void* context) const = 0;

    // Calls task(context, place) `count()` times, on as many threads as are free. Places are below `count()`. Where the
    // runtime tells its threads apart, two at once have different places, and the same processor has a place at every
    // call if the runtime ties its threads to them.
    virtual void run_in_places(Task task, void* context) const { run(count(), task, context); }
};

// The thread that calls, alone.
class CallingThread final : public Threads {
public:
    size_t count() const override { return 1; }
    void run(size_t count, Task task, void* context) const override {
        for (size_t index = 0; index < count; ++index) {
            task(context, index);
        }
    }
};

}  // namespace shearling
