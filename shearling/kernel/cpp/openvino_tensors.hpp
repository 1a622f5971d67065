// Tensors of OpenVINO as the kernels take them: contiguous rows of f32, of a width that is checked at every call.
#pragma once

#include <memory>
#include <numeric>
#include <openvino/core/except.hpp>
#include <openvino/runtime/tensor.hpp>
#include <vector>

#include "buffer.hpp"
#include "linear.hpp"

namespace shearling {

inline bool is_activation(ov::element::Type type) {
    return type == ov::element::f32 || type == ov::element::bf16 || type == ov::element::f16;
}

// Throws where an evaluation has other numbers of arguments than its operator.
inline void require_counts(
    const ov::TensorVector& inputs, size_t input_count, const ov::TensorVector& outputs, size_t output_count) {
    OPENVINO_ASSERT(
        inputs.size() == input_count && outputs.size() == output_count, inputs.size(), " inputs and ", outputs.size(),
        " outputs, expected ", input_count, " and ", output_count);
}

template <class From, class To>
void convert(const From* from, size_t count, To* to) {
    for (size_t index = 0; index < count; ++index) {
        to[index] = static_cast<To>(from[index]);
    }
}

// A tensor as rows of f32: itself, or a converted copy. Throws where it is no tensor of rows of this width.
class Floats {
public:
    Floats(const ov::Tensor& tensor, int64_t width) : copy_(0) {
        const ov::element::Type type = tensor.get_element_type();
        const ov::Shape& shape = tensor.get_shape();
        OPENVINO_ASSERT(is_activation(type), "the activations are ", type);
        OPENVINO_ASSERT(
            width > 0 && !shape.empty() && shape.back() == static_cast<size_t>(width), "activations ", shape,
            " do not end in ", width);
        const size_t size = tensor.get_size();
        if (type == ov::element::f32) {
            rows.data = tensor.data<const float>();
        } else {
            copy_.reserve(size * sizeof(float));
            rows.data = copy_.floats();
            if (type == ov::element::bf16) {
                convert(tensor.data<const ov::bfloat16>(), size, copy_.floats());
            } else {
                convert(tensor.data<const ov::float16>(), size, copy_.floats());
            }
        }
        rows.stride = shape.back();
        rows.count = size / rows.stride;
    }
    Rows rows;

private:
    Buffer copy_;
};

// Where a result goes: straight into the tensor, or through f32 into a narrower one.
class FloatTarget {
public:
    FloatTarget(ov::Tensor& tensor, ov::Shape shape, int64_t width) : tensor_(tensor), copy_(0) {
        shape.back() = static_cast<size_t>(width);
        tensor.set_shape(shape);
        OPENVINO_ASSERT(is_activation(tensor.get_element_type()), "the results are ", tensor.get_element_type());
        if (tensor.get_element_type() == ov::element::f32) {
            data = tensor.data<float>();
        } else {
            copy_.reserve(tensor.get_size() * sizeof(float));
            data = copy_.floats();
        }
    }
    ~FloatTarget() {
        if (tensor_.get_element_type() == ov::element::bf16) {
            convert(data, tensor_.get_size(), tensor_.data<ov::bfloat16>());
        } else if (tensor_.get_element_type() == ov::element::f16) {
            convert(data, tensor_.get_size(), tensor_.data<ov::float16>());
        }
    }
    FloatTarget(const FloatTarget&) = delete;
    FloatTarget& operator=(const FloatTarget&) = delete;
    float* data;

private:
    ov::Tensor& tensor_;
    Buffer copy_;
};

// Outputs of `widths`, with the last vectors as their biases.
class Results {
public:
    Results(
        ov::TensorVector& tensors, size_t first, const ov::Shape& shape, const std::vector<int64_t>& widths,
        const std::vector<std::vector<float>>* biases) {
        targets_.reserve(widths.size());
        for (size_t index = 0; index < widths.size(); ++index) {
            targets_.push_back(std::make_unique<FloatTarget>(tensors[first + index], shape, widths[index]));
            const float* bias = biases == nullptr ? nullptr : (*biases)[biases->size() - widths.size() + index].data();
            outputs.push_back({targets_.back()->data, static_cast<size_t>(widths[index]), bias, nullptr, 0});
        }
    }
    std::vector<Output> outputs;

private:
    std::vector<std::unique_ptr<FloatTarget>> targets_;
};

// Outputs of `widths` side by side in rows of `data`, with the last vectors as their biases.
inline std::vector<Output> joined_outputs(
    float* data, const std::vector<int64_t>& widths, const std::vector<std::vector<float>>* biases) {
    std::vector<Output> outputs;
    const auto total = static_cast<size_t>(std::accumulate(widths.begin(), widths.end(), int64_t{0}));
    for (size_t part = 0; part < widths.size(); data += widths[part++]) {
        const float* bias = biases == nullptr ? nullptr : (*biases)[biases->size() - widths.size() + part].data();
        outputs.push_back({data, total, bias, nullptr, 0});
    }
    return outputs;
}

}  // namespace shearling
