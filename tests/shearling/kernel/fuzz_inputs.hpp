// What the fuzzing programs share: matrices to pack, numbers that stand for trouble, and damage.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "packed_matrix.hpp"

namespace fuzz {

using Bytes = std::vector<uint8_t>;

class Random {
public:
    explicit Random(unsigned seed) : engine_(seed) {}
    // One of 0 .. limit - 1.
    size_t below(size_t limit) { return engine_() % limit; }
    bool once_in(size_t times) { return below(times) == 0; }

    template <class Value>
    Value one_of(std::initializer_list<Value> values) {
        return *(values.begin() + below(values.size()));
    }

private:
    std::mt19937 engine_;
};

// A packed matrix of a random kind; every size is met, and most are small.
inline Bytes packed_matrix(Random& random, size_t rows, size_t columns) {
    using namespace shearling;
    PlainMatrix plain{};
    plain.value_type = random.one_of({ValueType::bf16, ValueType::int8, ValueType::int4});
    plain.encoding = static_cast<Encoding>(random.below(2));
    plain.rows = rows;
    plain.columns = columns;
    const bool scaled = plain.value_type != ValueType::bf16;
    plain.scale_type = scaled ? static_cast<ScaleType>(1 + random.below(2)) : ScaleType::none;
    plain.group_size = !scaled ? 0 : columns;
    for (const size_t group_size : {4, 32}) {
        if (scaled && columns > group_size && random.once_in(3)) {
            plain.group_size = group_size;
        }
    }
    std::vector<uint16_t> values(rows * columns), scales(2 * rows * columns, 0x2C00);
    auto* bytes = reinterpret_cast<int8_t*>(values.data());
    const bool two_of_four = random.once_in(3);
    for (size_t index = 0; index < rows * columns; ++index) {
        const size_t number = random.below(512);
        if (plain.value_type == ValueType::bf16) {
            values[index] = number < 256 ? static_cast<uint16_t>(0x3F00 + number) : 0;
        } else {
            const bool left_out = two_of_four && index % columns % 4 / 2 == index / columns % 2;
            const bool kept = number < (two_of_four ? 480 : 256) && !left_out;
            bytes[index] = kept ? static_cast<int8_t>(static_cast<int>(number % 16) - 8) : 0;
        }
    }
    plain.values = values.data();
    plain.scales = scales.data();
    Bytes packed(packed_size(plain));
    pack(plain, packed.data());
    return packed;
}

// Flips a bit, most often of the first bytes, or overwrites eight bytes by a number that stands for trouble.
inline void damage(Random& random, uint8_t* bytes, size_t size) {
    if (size < 8) {
        return;
    }
    const size_t place = random.below(random.once_in(2) ? std::min<size_t>(size, 160) : size);
    if (random.once_in(4)) {
        const auto number = random.one_of<uint64_t>(
            {0, 1, 63, 64, 65, 1u << 24, (1u << 24) + 1, UINT32_MAX, uint64_t{1} << 32, UINT64_MAX >> 1, UINT64_MAX,
             UINT64_MAX - 63});
        std::memcpy(bytes + std::min(place / 8 * 8, size - 8), &number, sizeof number);
    } else {
        bytes[place] ^= static_cast<uint8_t>(1u << random.below(8));
    }
}

// Activations: moderate, or now and then what no model should see.
inline std::vector<float> activations(Random& random, size_t count) {
    std::vector<float> x(count);
    for (float& value : x) {
        value = static_cast<float>(random.below(2001)) / 1000.0f - 1.0f;
    }
    if (count > 0 && random.once_in(8)) {
        constexpr float infinity = std::numeric_limits<float>::infinity();
        x[random.below(count)] =
            random.one_of({infinity, -infinity, std::numeric_limits<float>::quiet_NaN(), 3.4e38f, 1e-45f, -0.0f});
    }
    return x;
}

// Exactly these bytes, so that the sanitizer sees the next one, at an address that nothing is aligned to.
class ExactCopy {
public:
    ExactCopy(const uint8_t* bytes, size_t size) : memory_(new uint8_t[size + 1]) {
        std::memcpy(memory_.get() + 1, bytes, size);
    }
    uint8_t* data() { return memory_.get() + 1; }

private:
    std::unique_ptr<uint8_t[]> memory_;
};

}  // namespace fuzz
