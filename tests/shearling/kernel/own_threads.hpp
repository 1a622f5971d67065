// Threads for tests, of any number, all of which come.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include "threads.hpp"

class OwnThreads final : public shearling::Threads {
public:
    explicit OwnThreads(size_t count) : count_(count) {}

    size_t count() const override { return count_; }

    // Task `index` on the thread of that place.
    void run(size_t count, Task task, void* context) const override {
        std::vector<std::thread> threads;
        for (size_t place = 0; place < count_; ++place) {
            threads.emplace_back([=] {
                current_place() = place;
                for (size_t index = place; index < count; index += count_) {
                    task(context, index);
                }
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
    }

    // That of the thread which calls.
    static size_t& current_place() {
        static thread_local size_t place = 0;
        return place;
    }

private:
    size_t count_;
};

// Lets nobody through before so many have come.
class Gate {
public:
    explicit Gate(size_t count) : left_(count) {}

    void pass() {
        std::unique_lock<std::mutex> lock(mutex_);
        if (--left_ == 0) {
            all_here_.notify_all();
        } else {
            all_here_.wait(lock, [this] { return left_ == 0; });
        }
    }

private:
    std::mutex mutex_;
    std::condition_variable all_here_;
    size_t left_;
};
