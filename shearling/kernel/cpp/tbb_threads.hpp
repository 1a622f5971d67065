// Threads of oneTBB, which OpenVINO runs on: those of the arena that calls.
#pragma once

#include "threads.hpp"

namespace shearling {

const Threads& tbb_threads();

}  // namespace shearling
