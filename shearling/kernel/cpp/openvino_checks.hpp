// What the operators for OpenVINO refuse when a node is made.
#pragma once

#include <openvino/op/op.hpp>

#include "openvino_tensors.hpp"

namespace shearling {

// Throws where an input of a node can be seen not to be activations of a width. What it shows at last, every
// evaluation checks.
inline void check_activation(const ov::Node& node, size_t input, int64_t width) {
    const ov::element::Type type = node.get_input_element_type(input);
    NODE_VALIDATION_CHECK(&node, type.is_dynamic() || is_activation(type), "the activations are ", type);
    const ov::PartialShape& shape = node.get_input_partial_shape(input);
    NODE_VALIDATION_CHECK(
        &node, shape.rank().is_dynamic() || (shape.size() > 0 && shape[shape.size() - 1].compatible(width)),
        "activations ", shape, " do not end in ", width);
}

inline void check_epsilon(const ov::Node& node, const char* name, double epsilon) {
    NODE_VALIDATION_CHECK(&node, epsilon >= 0.0 && epsilon <= 1.0, name, " is ", epsilon, ", not from 0 to 1");
}

}  // namespace shearling
