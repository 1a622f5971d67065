#include "openvino_constants.hpp"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/runtime/tensor.hpp>
#include <string>

#include "huge_memory.hpp"
#include "packed_matrix.hpp"
#include "placement.hpp"
#include "tbb_threads.hpp"

namespace shearling {
namespace {

using ov::op::v0::Constant;

constexpr char operator_set[] = "shearling";

ov::OutputVector as_constant(const ov::Tensor& tensor) { return std::make_shared<Constant>(tensor)->outputs(); }

void require_version(ov::AttributeVisitor& visitor) {
    int64_t version = 0;
    visitor.on_attribute("format_version", version);
    OPENVINO_ASSERT(version == 1, "format_version ", version, " is not 1: made by another version");
}

// What its subclasses make while a graph is read.
class ConstantExtension : public ov::BaseOpExtension {
public:
    explicit ConstantExtension(const char* name) : type_(name, operator_set) {}
    const ov::DiscreteTypeInfo& get_type_info() const override { return type_; }
    std::vector<ov::Extension::Ptr> get_attached_extensions() const override { return {}; }

private:
    ov::DiscreteTypeInfo type_;
};

// Numbers that stand in the text of an IR, whose weights file does not hold them.
class Numbers final : public ConstantExtension {
public:
    Numbers() : ConstantExtension("Numbers") {}

    ov::OutputVector create(const ov::OutputVector& inputs, ov::AttributeVisitor& visitor) const override {
        OPENVINO_ASSERT(inputs.empty(), "numbers have no inputs, not ", inputs.size());
        std::string name, content;
        std::vector<int64_t> sizes;
        visitor.on_attribute("element_type", name);
        visitor.on_attribute("shape", sizes);
        visitor.on_attribute("content", content);
        require_version(visitor);
        size_t expected = 1;
        for (const int64_t size : sizes) {
            OPENVINO_ASSERT(
                size >= 0 && (size == 0 || expected <= content.size() / static_cast<size_t>(size)),
                "numbers of another shape than their content");
            expected *= static_cast<size_t>(size);
        }
        // Of other types an element is no number, or not of whole bytes: that of strings is an object with a pointer.
        OPENVINO_ASSERT(
            name == "f32" || name == "i64" || name == "i32" || name == "u8", "numbers of type '", name,
            "', not f32, i64, i32 or u8");
        const ov::element::Type type(name);
        OPENVINO_ASSERT(content.size() == 2 * expected * type.size(), "numbers of another shape than their content");
        ov::Tensor tensor(type, ov::Shape(sizes.begin(), sizes.end()));
        auto* const target = static_cast<uint8_t*>(tensor.data());
        for (size_t index = 0; index < content.size() / 2; ++index) {
            target[index] = static_cast<uint8_t>(digit(content[2 * index]) << 4 | digit(content[2 * index + 1]));
        }
        return as_constant(tensor);
    }

private:
    static int digit(char letter) {
        OPENVINO_ASSERT(
            (letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'f'),
            "numbers that are no hexadecimal digits");
        return letter <= '9' ? letter - '0' : letter - 'a' + 10;
    }
};

// The stored numbers of one packed matrix, or its scales, as NNCF writes those of a weight. Its type is that of a
// constant, a Const in the text, since of no other one OpenVINO finds the bytes in the weights file.
class Unpacked final : public ConstantExtension {
public:
    Unpacked() : ConstantExtension("Constant") {}

    ov::OutputVector create(const ov::OutputVector& inputs, ov::AttributeVisitor& visitor) const override {
        std::string part;
        visitor.on_attribute("part", part);
        require_version(visitor);
        OPENVINO_ASSERT(part == "values" || part == "scales", "no part of a packed matrix: '", part, "'");
        const auto packed = std::make_shared<Constant>();
        packed->alloc_buffer_on_visit_attributes(false);  // a part of the file, not a copy
        packed->visit_attributes(visitor);
        packed->constructor_validate_and_infer_types();
        const size_t size = packed->get_byte_size();
        OPENVINO_ASSERT(
            inputs.empty() && packed->get_element_type() == ov::element::u8 && size > 0,
            "a packed matrix has no bytes in the weights file");
        const auto* const bytes = static_cast<const uint8_t*>(packed->get_data_ptr());
        return as_constant(part == "values" ? values(bytes, size) : scales(bytes, size));
    }

private:
    static PackedMatrix read(const uint8_t* bytes, size_t size) {
        PackedMatrix matrix{};
        refuse(read_header(bytes, size, matrix));
        OPENVINO_ASSERT(
            matrix.group_size == 0 || matrix.group_size * matrix.groups() == matrix.columns,
            "groups of a packed matrix are of different sizes");
        return matrix;
    }

    static void refuse(const char* fault) { OPENVINO_ASSERT(fault == nullptr, "a packed weight is corrupt: ", fault); }

    static bool is_grouped(const PackedMatrix& matrix) {
        return matrix.value_type == ValueType::int4 || matrix.groups() > 1;
    }

    // Of a copy, so that what is read was checked: a mapped file may change.
    static ov::Tensor values(const uint8_t* bytes, size_t size) {
        const std::shared_ptr<uint8_t> copy = allocate_apart(size);
        Placement(bytes, size, {}, 0).copy(copy.get(), isolated_tbb_threads());
        release_file_pages(bytes, size);
        const PackedMatrix matrix = read(copy.get(), size);
        refuse(validate(matrix, isolated_tbb_threads()));
        ov::Shape shape{matrix.rows, matrix.columns};
        if (is_grouped(matrix)) {
            shape = {matrix.rows, matrix.groups(), matrix.columns / matrix.groups()};
        }
        if (matrix.value_type != ValueType::int4) {
            ov::Tensor tensor(matrix.value_type == ValueType::bf16 ? ov::element::bf16 : ov::element::i8, shape);
            unpack(matrix, tensor.data(), nullptr, isolated_tbb_threads());
            return tensor;
        }
        const size_t count = matrix.rows * matrix.columns;
        const std::shared_ptr<uint8_t> numbers = allocate_apart(count + 1);
        numbers.get()[count] = 0;  // behind an odd number of them is one more
        unpack(matrix, numbers.get(), nullptr, isolated_tbb_threads());
        ov::Tensor tensor(ov::element::i4, shape);
        join_nibbles(numbers.get(), tensor.get_byte_size(), static_cast<uint8_t*>(tensor.data()));
        return tensor;
    }

    // Two numbers a byte, the first in its lower half.
    static void join_nibbles(const uint8_t* numbers, size_t size, uint8_t* target) {
        constexpr size_t piece = size_t{1} << 20;
        struct Joining {
            const uint8_t* numbers;
            size_t size;
            uint8_t* target;
        };
        Joining joining{numbers, size, target};
        isolated_tbb_threads().run((size + piece - 1) / piece, [](void* context, size_t index) {
            const Joining& all = *static_cast<const Joining*>(context);
            const size_t last = std::min(all.size, (index + 1) * piece);
            for (size_t place = index * piece; place < last; ++place) {
                all.target[place] =
                    static_cast<uint8_t>((all.numbers[2 * place] & 15) | all.numbers[2 * place + 1] << 4);
            }
        }, &joining);
    }

    static ov::Tensor scales(const uint8_t* bytes, size_t size) {
        PackedMatrix matrix = read(bytes, size);
        OPENVINO_ASSERT(matrix.scale_type != ScaleType::none, "a packed matrix without scales");
        const std::vector<uint8_t> copy(matrix.scales, matrix.offsets);
        matrix.scales = copy.data();
        refuse(validate_scales(matrix));
        ov::Shape shape{matrix.rows, matrix.groups()};
        if (is_grouped(matrix)) {
            shape.push_back(1);
        }
        ov::Tensor tensor(matrix.scale_type == ScaleType::f32 ? ov::element::f32 : ov::element::f16, shape);
        unpack(matrix, nullptr, tensor.data(), isolated_tbb_threads());
        return tensor;
    }
};

}  // namespace

std::vector<ov::Extension::Ptr> constant_extensions() {
    return {std::make_shared<Numbers>(), std::make_shared<Unpacked>()};
}

}  // namespace shearling
