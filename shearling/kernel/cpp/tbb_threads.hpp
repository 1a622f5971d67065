// Threads of oneTBB, which OpenVINO runs on: those of the arena that calls.
#pragma once

#include "threads.hpp"

namespace shearling {

const Threads& tbb_threads();

// The same for who holds a lock meanwhile: a thread that waits takes on no other work, which could want that lock.
const Threads& isolated_tbb_threads();

}  // namespace shearling
