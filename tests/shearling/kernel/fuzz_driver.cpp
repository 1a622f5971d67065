// Damages packed matrices at random, and runs every kernel on those that still pass: built with AddressSanitizer and
// UBSan, so that a read outside of a matrix, whatever it says about itself, ends the program.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "linear.hpp"
#include "tbb_threads.hpp"

using namespace shearling;

namespace {

std::vector<uint8_t> make(std::mt19937& random, PlainMatrix& plain) {
    const auto pick = [&](unsigned limit) { return random() % limit; };
    plain.value_type = static_cast<ValueType>(1 + pick(3));
    plain.encoding = static_cast<Encoding>(pick(2));
    plain.rows = 1 + pick(40);
    plain.columns = 1 + pick(90);
    const bool scaled = plain.value_type != ValueType::bf16;
    plain.scale_type = scaled ? static_cast<ScaleType>(1 + pick(2)) : ScaleType::none;
    plain.group_size = !scaled ? 0 : plain.columns > 32 && pick(2) == 0 ? 32 : plain.columns;
    std::vector<uint16_t> values(plain.rows * plain.columns), scales(2 * plain.rows * plain.columns);
    auto* bytes = reinterpret_cast<int8_t*>(values.data());
    for (size_t index = 0; index < plain.rows * plain.columns; ++index) {
        const bool kept = pick(2) == 0;
        if (plain.value_type == ValueType::bf16) {
            values[index] = kept ? static_cast<uint16_t>(0x3F00 + pick(256)) : 0;
        } else {
            bytes[index] = kept ? static_cast<int8_t>(static_cast<int>(pick(16)) - 8) : 0;
        }
    }
    std::fill(scales.begin(), scales.end(), 0x2C00);
    plain.values = values.data();
    plain.scales = scales.data();
    std::vector<uint8_t> packed(packed_size(plain));
    pack(plain, packed.data());
    return packed;
}

void run(const PackedMatrix& matrix, size_t count) {
    const std::vector<float> x(count * matrix.columns, 0.5f);
    std::vector<float> y(count * matrix.rows);
    const Output output{y.data(), matrix.rows, nullptr, nullptr, 0};
    for (const char* name : {"portable", "avx2", "avx_vnni", "avx512", "amx"}) {
        if (const KernelSet* kernels = find_kernels(name)) {
            for (const Precision precision : {Precision::automatic, Precision::exact}) {
                multiply(
                    &matrix, 1, Rows{x.data(), count, matrix.columns}, Norm{nullptr, 0.0f}, &output,
                    Settings{*kernels, precision, tbb_threads()});
            }
        }
    }
}

}  // namespace

int main(int, char** arguments) {
    std::mt19937 random(static_cast<unsigned>(std::atoi(arguments[1])));
    const int rounds = std::atoi(arguments[2]);
    int passed = 0;
    for (int round = 0; round < rounds; ++round) {
        PlainMatrix plain{};
        std::vector<uint8_t> packed = make(random, plain);
        const unsigned damages = random() % 4;
        for (unsigned damage = 0; damage < damages; ++damage) {
            packed[random() % (damage == 0 ? std::min<size_t>(packed.size(), 1024) : packed.size())] ^=
                static_cast<uint8_t>(1u << random() % 8);
        }
        const size_t size = damages == 3 ? random() % packed.size() : packed.size();
        // A copy of exactly this size: the sanitizer sees every byte beyond it.
        const std::unique_ptr<uint8_t[]> exact(new uint8_t[size + 1]);
        std::memcpy(exact.get(), packed.data(), size);
        PackedMatrix matrix;
        size_t end;
        if (read_headers(exact.get(), size, 1, &matrix, end) != nullptr || validate(matrix) != nullptr) {
            continue;
        }
        ++passed;
        run(matrix, 1 + random() % 14);
    }
    std::printf("%d of %d passed\n", passed, rounds);
    return 0;
}
