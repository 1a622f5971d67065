// Damages files' parts at random, and computes with what is not refused: built with AddressSanitizer and UBSan, so that
// an access outside of a matrix or of activations, whatever the file says of itself, ends the program.
//
//   fuzz SEED CASES      with the kernels that SHEARLING_KERNEL names
//
// One case in two is a packed matrix through the C interface; of the others, one in 64 is some steps of a decoder
// layer with its cache, one a node that makes such a step, one a text with constants, and the rest a node of another
// operator with its attributes, constant, shapes and types. Prints how many of each there were, were damaged, and were
// computed with.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "fuzz_constants.hpp"
#include "fuzz_decoder.hpp"
#include "fuzz_inputs.hpp"
#include "fuzz_operators.hpp"
#include "fuzz_step.hpp"
#include "linear.hpp"

extern "C" {
const char* shearling_validate(const uint8_t* packed, uint64_t size);
const char* shearling_unpack(const uint8_t* packed, uint64_t size, void* values, void* scales);
uint64_t shearling_expand(const uint8_t* packed, uint64_t size, uint8_t* expanded);
const char* shearling_matmul(
    const uint8_t* packed, uint64_t size, const float* x, uint64_t count, uint64_t columns, const float* bias, float* y,
    uint64_t rows, int exact, int checked, int held, const char* kernels);
}

// What scratch memory comes from where a sanitizer watches (buffer.hpp).
void* operator new(size_t size, std::align_val_t alignment) {
    const bool refused = fuzz::allocations_left > 0 && fuzz::allocations_left.fetch_sub(1) == 1;
    void* memory = nullptr;
    if (refused || posix_memalign(&memory, static_cast<size_t>(alignment), size) != 0) {
        throw std::bad_alloc();
    }
    return memory;
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

using namespace fuzz;

[[noreturn]] void fail(size_t number, const char* what) {
    std::fprintf(stderr, "case %zu: %s\n", number, what);
    std::exit(1);
}

struct Counts {
    size_t cases = 0, damaged = 0, computed = 0;
};

// Rounding activations to eight bits or to bf16 changes a product by a share of the largest of them, or of itself; what
// may overflow on the way is not compared.
void compare(
    const shearling::PackedMatrix& matrix, const std::vector<float>& x, const std::vector<float>& rounded,
    const std::vector<float>& exact) {
    std::vector<float> weights(matrix.columns);
    for (size_t output = 0; output < matrix.rows; ++output) {
        shearling::read_row(matrix, output, weights.data());
        double sum = 0.0;
        for (const float weight : weights) {
            sum += std::fabs(weight);
        }
        for (size_t row = 0; row * matrix.columns < x.size(); ++row) {
            double largest = 0.0;
            for (size_t column = 0; column < matrix.columns; ++column) {
                const double size = std::fabs(x[row * matrix.columns + column]);
                largest = std::isfinite(size) ? std::max(largest, size) : HUGE_VAL;
            }
            const size_t place = row * matrix.rows + output;
            const double limit = largest * sum / 50.0 + 1e-5 * (1.0 + std::fabs(exact[place]));
            if (largest < 1e30 && limit < 1e30 && !(std::fabs(rounded[place] - exact[place]) <= limit)) {
                fail(0, "a product is not what it is in f32");
            }
        }
    }
}

void compute(Random& random, const uint8_t* bytes, size_t size) {
    shearling::PackedMatrix matrix;
    shearling::read_header(bytes, size, matrix);
    std::vector<uint16_t> values(matrix.rows * matrix.columns);
    std::vector<float> scales(matrix.rows * matrix.groups());
    shearling_unpack(bytes, size, values.data(), scales.data());
    Bytes dense(shearling_expand(bytes, size, nullptr));
    shearling_expand(bytes, size, dense.data());
    if (shearling_validate(dense.data(), dense.size()) != nullptr) {
        fail(0, "an expanded matrix is refused");
    }
    const size_t count = random.once_in(8)     ? 0
                         : random.once_in(128) ? many_rows(random)
                                               : 1 + random.below(random.once_in(16) ? 140 : 14);
    const std::vector<float> x = activations(random, count * matrix.columns), bias(matrix.rows, 1.0f);
    const float* const addend = random.once_in(2) ? bias.data() : nullptr;
    std::vector<float> results[2], held(count * matrix.rows);
    for (const int exact : {0, 1}) {
        results[exact].resize(count * matrix.rows);
        for (const bool hold : {true, false}) {
            shearling_matmul(
                bytes, size, x.data(), count, matrix.columns, addend, (hold ? held : results[exact]).data(),
                matrix.rows, exact, 0, hold ? 1 : 0, shearling::best_kernels().name);
        }
        for (size_t index = 0; index < held.size(); ++index) {
            const float one = held[index], other = results[exact][index];
            if (std::memcmp(&one, &other, sizeof one) != 0 && !(std::isnan(one) && std::isnan(other))) {
                fail(0, "a product is another where its matrix is held as a model's");
            }
        }
    }
    compare(matrix, x, results[0], results[1]);
    // Sizes that are not those of the matrix: refused before a byte is touched.
    const char* const fault = shearling_matmul(
        bytes, size, x.data(), count, matrix.columns + 1, nullptr, results[0].data(), matrix.rows, 0, 0, 0, nullptr);
    if (fault == nullptr) {
        fail(0, "activations of another width are accepted");
    }
}

void matrix_case(Random& random, size_t number, Counts& counts) {
    const bool large = random.once_in(32);
    Bytes packed = packed_matrix(random, 1 + random.below(large ? 70 : 24), 1 + random.below(large ? 200 : 40));
    const size_t damages = random.below(4);
    for (size_t index = 0; index < damages; ++index) {
        damage(random, packed.data(), packed.size());
    }
    const size_t size = damages == 3 ? random.below(packed.size()) : packed.size();
    ExactCopy exact(packed.data(), size);
    ++counts.cases;
    counts.damaged += damages > 0 ? 1 : 0;
    if (shearling_validate(exact.data(), size) == nullptr) {
        ++counts.computed;
        compute(random, exact.data(), size);
    } else if (damages == 0) {
        fail(number, "a sound matrix is refused");
    }
}

// A case that throws is refused: what is damaged may be, what is sound may not.
template <typename Work>
void try_case(size_t number, const char* what, bool damaged, Counts& counts, const Work& work) {
    ++counts.cases;
    counts.damaged += damaged ? 1 : 0;
    try {
        work();
        ++counts.computed;
    } catch (const std::exception& error) {
        if (!damaged) {
            fail(number, (std::string("a sound ") + what + " is refused: " + error.what()).c_str());
        }
    }
}

// Damages it as often as drawn, below `most`; whether it was damaged at all.
template <typename Sound>
bool damage_below(Random& random, Sound& sound, size_t most) {
    const size_t damages = random.below(most);
    for (size_t index = 0; index < damages; ++index) {
        damage(random, sound);
    }
    return damages > 0;
}

void operator_case(Random& random, size_t number, Counts& counts) {
    Node node = sound_node(random);
    const bool damaged = damage_below(random, node, 4);
    try_case(number, "node", damaged, counts, [&] { evaluate(random, node); });
}

void decoder_case(Random& random, size_t number, Counts& counts) {
    Decoder decoder = sound_decoder(random);
    const bool damaged = random.once_in(2);
    if (damaged && random.once_in(4)) {
        damage(random, decoder);
    }
    try_case(number, "decoder", damaged, counts, [&] { DecoderRun(random, decoder).run(damaged); });
}

void step_case(Random& random, size_t number, Counts& counts) {
    StepNode node = sound_step(random);
    const bool damaged = damage_below(random, node, 3);
    try_case(number, "step", damaged, counts, [&] { evaluate(random, node); });
}

void constant_case(Random& random, size_t number, Counts& counts) {
    ConstantText text = sound_text(random);
    const bool damaged = damage_below(random, text, 2);
    try_case(number, "text", damaged, counts, [&] { read(text, !damaged); });
}

}  // namespace

int main(int, char** arguments) {
    Random random(static_cast<unsigned>(std::atoi(arguments[1])));
    const auto cases = static_cast<size_t>(std::atoll(arguments[2]));
    Counts matrices, operators, decoders, steps, constants;
    for (size_t number = 0; number < cases; ++number) {
        if (number % 2 == 0) {
            matrix_case(random, number, matrices);
        } else if (number % 128 == 127) {
            decoder_case(random, number, decoders);
        } else if (number % 128 == 125) {
            step_case(random, number, steps);
        } else if (number % 128 == 123) {
            constant_case(random, number, constants);
        } else {
            operator_case(random, number, operators);
        }
    }
    std::printf("%s\n", shearling::best_kernels().name);
    for (const Counts& counts : {matrices, operators, decoders, steps, constants}) {
        std::printf("%zu %zu %zu\n", counts.cases, counts.damaged, counts.computed);
    }
    return 0;
}
