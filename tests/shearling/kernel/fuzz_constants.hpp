// Texts of IRs with constants of ours, which are made while a text is read: numbers that stand in it, and parts of a
// packed matrix in the weights file.
#pragma once

#include <cstdio>
#include <cstring>
#include <map>
#include <openvino/op/constant.hpp>
#include <openvino/runtime/core.hpp>
#include <string>

#include "fuzz_inputs.hpp"
#include "fuzz_operators.hpp"
#include "openvino_constants.hpp"

namespace fuzz {

struct ConstantText {
    bool of_numbers = true;
    std::map<std::string, std::string> attributes;
    Bytes weights{0};  // the file
    Bytes expected;    // what the constant holds
};

inline std::string hexadecimal(const Bytes& bytes) {
    std::string digits;
    for (const uint8_t byte : bytes) {
        char two[3];
        std::snprintf(two, sizeof two, "%02x", byte);
        digits += two;
    }
    return digits;
}

inline ConstantText sound_numbers(Random& random) {
    ConstantText text;
    const auto type = random.one_of({ov::element::f32, ov::element::i64, ov::element::i32, ov::element::u8});
    size_t count = 1;
    std::string shape;
    for (size_t axis = 1 + random.below(3); axis > 0; --axis) {
        const size_t size = shape.empty() ? random.below(5) : 1 + random.below(4);  // none only before others
        shape += (shape.empty() ? "" : ",") + std::to_string(size);
        count *= size;
    }
    text.expected.resize(count * type.size());
    for (uint8_t& byte : text.expected) {
        byte = static_cast<uint8_t>(random.below(256));
    }
    text.attributes = {
        {"element_type", type.get_type_name()},
        {"shape", shape},
        {"content", hexadecimal(text.expected)},
        {"format_version", "1"}};
    return text;
}

inline ConstantText sound_part(Random& random) {
    ConstantText text;
    text.of_numbers = false;
    text.weights = packed_matrix(random, 1 + random.below(40), 4 * (1 + random.below(16)));
    shearling::PackedMatrix matrix{};
    shearling::read_header(text.weights.data(), text.weights.size(), matrix);
    const bool scaled = matrix.scale_type != shearling::ScaleType::none;
    // Groups of one size are unpacked, and no others.
    const bool plain = matrix.group_size == 0 || matrix.group_size * matrix.groups() == matrix.columns;
    if (!plain) {
        return sound_numbers(random);
    }
    const bool values = !scaled || random.once_in(2);
    const size_t count = matrix.rows * matrix.columns;
    Bytes of_values(2 * count), of_scales(4 * matrix.rows * matrix.groups() + 4);
    shearling::unpack(matrix, of_values.data(), of_scales.data(), shearling::CallingThread());
    if (!values) {
        const size_t size = matrix.scale_type == shearling::ScaleType::f32 ? 4 : 2;
        text.expected.assign(of_scales.begin(), of_scales.begin() + size * matrix.rows * matrix.groups());
    } else if (matrix.value_type == shearling::ValueType::int4) {
        text.expected.resize((count + 1) / 2);
        for (size_t index = 0; index < count; ++index) {
            text.expected[index / 2] |= static_cast<uint8_t>((of_values[index] & 15) << 4 * (index % 2));
        }
    } else {
        const size_t size = matrix.value_type == shearling::ValueType::bf16 ? 2 : 1;
        text.expected.assign(of_values.begin(), of_values.begin() + size * count);
    }
    const std::string size = std::to_string(text.weights.size());
    text.attributes = {
        {"element_type", "u8"}, {"shape", size}, {"offset", "0"}, {"size", size},
        {"part", values ? "values" : "scales"}, {"format_version", "1"}};
    return text;
}

inline ConstantText sound_text(Random& random) {
    return random.once_in(2) ? sound_numbers(random) : sound_part(random);
}

inline void damage(Random& random, ConstantText& text) {
    if (!text.of_numbers && random.once_in(2)) {
        return damage(random, text.weights.data(), text.weights.size());
    }
    auto place = text.attributes.begin();
    std::advance(place, random.below(text.attributes.size()));
    std::string& value = place->second;
    switch (random.below(5)) {
        case 0: value = std::to_string(trouble(random)); break;
        case 1: value += random.one_of<const char*>({"0", ",2", "g", "00", " "}); break;
        case 2: value = value.substr(0, value.size() - std::min<size_t>(value.size(), 1 + random.below(3))); break;
        case 3:
            value = random.one_of<const char*>({"i4", "u1", "string", "f64", "dynamic", "bf16", "scales", "-1"});
            break;
        default: text.attributes.erase(place);
    }
}

// Reads the text as a model, whose constant must be what was expected of a sound one. Throws where that is refused.
inline void read(const ConstantText& text, bool sound) {
    static ov::Core core = [] {
        ov::Core made;
        made.add_extension(shearling::constant_extensions());
        return made;
    }();
    std::string data;
    for (const auto& [name, value] : text.attributes) {
        data += name + "=\"" + value + "\" ";
    }
    const std::string kind = text.of_numbers ? "Numbers" : "Const";
    const std::string xml =
        "<net name=\"text\" version=\"11\"><layers><layer id=\"0\" name=\"it\" type=\"" + kind +
        "\" version=\"shearling\"><data " + data +
        "/><output><port id=\"0\" precision=\"FP32\"/></output></layer>"
        "<layer id=\"1\" name=\"end\" type=\"Result\" version=\"opset1\">"
        "<input><port id=\"0\" precision=\"FP32\"/></input></layer></layers>"
        "<edges><edge from-layer=\"0\" from-port=\"0\" to-layer=\"1\" to-port=\"0\"/></edges></net>";
    ExactTensor file(ov::element::u8, {text.weights.size()});
    std::memcpy(file.tensor().data(), text.weights.data(), text.weights.size());
    const auto model = core.read_model(xml, file.tensor());
    const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(model->get_results()[0]->get_input_node_shared_ptr(0));
    require_kept(constant != nullptr, "what was read is no constant");
    const auto* const bytes = static_cast<const uint8_t*>(constant->get_data_ptr());
    const Bytes found(bytes, bytes + constant->get_byte_size());  // all of it is there
    require_kept(!sound || found == text.expected, "a constant holds something else");
}

}  // namespace fuzz
