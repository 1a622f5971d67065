// Which instruction set computes here.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "linear.hpp"

namespace shearling {
namespace {

bool runs_here(const KernelSet& kernels) {
#if defined(__x86_64__)
    if (&kernels == &amx_kernels) {
        static const bool able = runs_here(avx512_bf16_kernels) && has_tile_registers();
        return able;
    }
    if (&kernels == &avx512_bf16_kernels) {
        return runs_here(avx512_kernels) && __builtin_cpu_supports("avx512bf16");
    }
    if (&kernels == &avx512_kernels) {
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
               __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni");
    }
    if (&kernels == &avx_vnni_kernels) {
        static const bool able = runs_here(avx2_kernels) && has_avx_vnni();
        return able;
    }
    if (&kernels == &avx2_kernels) {
        // Every processor with all of them has F16C and POPCNT.
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    }
#endif
    return &kernels == &portable_kernels;
}

const KernelSet& best_that_run() {
    for (const char* name : {"amx", "avx512_bf16", "avx512", "avx_vnni", "avx2"}) {
        if (const KernelSet* kernels = find_kernels(name)) {
            return *kernels;
        }
    }
    return portable_kernels;
}

}  // namespace

const KernelSet* find_kernels(const char* name) {
#if defined(__x86_64__)
    for (const KernelSet* kernels :
         {&amx_kernels, &avx512_bf16_kernels, &avx512_kernels, &avx_vnni_kernels, &avx2_kernels, &portable_kernels}) {
#else
    for (const KernelSet* kernels : {&portable_kernels}) {
#endif
        if (std::strcmp(kernels->name, name) == 0 && runs_here(*kernels)) {
            return kernels;
        }
    }
    return nullptr;
}

const KernelSet& best_kernels() {
    static const KernelSet& best = []() -> const KernelSet& {
        const char* forced = std::getenv("SHEARLING_KERNEL");
        const bool free = forced == nullptr || *forced == '\0';
        if (const KernelSet* kernels = free ? nullptr : find_kernels(forced)) {
            return *kernels;
        }
        const KernelSet& kernels = best_that_run();
        if (!free) {
            std::fprintf(stderr, "SHEARLING_KERNEL=%s: no such kernels here; %s compute\n", forced, kernels.name);
        }
        return kernels;
    }();
    return best;
}

}  // namespace shearling
