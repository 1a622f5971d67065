// Nodes that make the step of a decoder: sound ones, and what a graph could feed them.
#pragma once

#include <cstring>
#include <memory>
#include <openvino/op/parameter.hpp>
#include <vector>

#include "attention.hpp"
#include "fuzz_inputs.hpp"
#include "fuzz_operators.hpp"
#include "openvino_operators.hpp"

namespace fuzz {

// Cosines and sines of some sets, a mask and sources.
struct StepNode {
    std::vector<Input> inputs;
    size_t batch = 1, rows = 1, positions = 1, rotated = 2;
    bool masked = false, reordered = false;
    int64_t source = 0;  // of the first sequence, where it is another one
    bool fewer_arguments = false;  // than it was made with
};

inline StepNode sound_step(Random& random) {
    StepNode node;
    node.batch = random.below(4);
    node.rows = random.once_in(8) ? many_rows(random) : random.below(40);
    node.positions = node.rows + random.below(80);
    node.rotated = 2 * (1 + random.below(40));
    node.masked = random.once_in(2);
    node.reordered = random.once_in(2);
    node.source = node.batch == 0 ? 0 : static_cast<int64_t>(random.below(node.batch));
    const auto declared = [&](Input& input) {
        input.declared_type = input.type;
        input.declared = random.once_in(2) ? ov::PartialShape::dynamic() : ov::PartialShape(input.shape);
    };
    const size_t sets = 1 + random.below(shearling::most_angle_sets), tables = random.once_in(2) ? 1 : node.batch;
    node.inputs.resize(2 * sets + 2);
    for (Input& input : node.inputs) {
        input.type = random.one_of({ov::element::f32, ov::element::bf16, ov::element::f16});
        input.shape = {tables, node.rows, node.rotated};
    }
    Input &mask = node.inputs[2 * sets], &sources = node.inputs.back();
    mask.shape = {node.batch, node.positions};
    sources.shape = {node.batch};
    for (Input* const integers : {&mask, &sources}) {
        integers->type = random.one_of({ov::element::i32, ov::element::i64});
    }
    for (Input& input : node.inputs) {
        declared(input);
    }
    return node;
}

inline void damage(Random& random, StepNode& node) {
    if (node.inputs.empty()) {
        return;
    }
    Input& input = node.inputs[random.below(node.inputs.size())];
    const size_t dimension = input.shape.empty() ? 0 : random.below(input.shape.size());
    switch (random.below(8)) {
        case 6: node.fewer_arguments = true; break;
        case 0: node.inputs.pop_back(); break;
        case 1:
            node.inputs.insert(node.inputs.begin(), random.one_of<size_t>({1, 2, 16}), Input(node.inputs[0]));
            break;
        case 2: input.shape.clear(); break;
        case 3: input.shape.push_back(random.below(3)); break;
        case 4:
            input.type = random.one_of(
                {ov::element::f64, ov::element::u8, ov::element::i8, ov::element::f32, ov::element::i64});
            break;
        case 5:
            for (Input& one : node.inputs) {
                one.declared = ov::PartialShape{
                    trouble(random), trouble(random), random.once_in(2) ? trouble(random) : int64_t{2}};
            }
            break;
        default:
            if (!input.shape.empty()) {
                input.shape[dimension] =
                    random.one_of<size_t>({0, 1, input.shape[dimension] + 1, 2 * input.shape[dimension] + 1});
            }
    }
}

// Makes the node and a step, which is read to its end. Throws where that is refused.
inline void evaluate(Random& random, const StepNode& node) {
    ov::OutputVector arguments;
    for (const Input& input : node.inputs) {
        arguments.push_back(std::make_shared<ov::op::v0::Parameter>(input.declared_type, input.declared));
    }
    const auto made = std::make_shared<shearling::SparseStep>();
    made->set_arguments(arguments);
    made->constructor_validate_and_infer_types();
    std::vector<std::unique_ptr<ExactTensor>> tensors;
    ov::TensorVector inputs;
    for (const Input& input : node.inputs) {
        tensors.push_back(std::make_unique<ExactTensor>(input.type, input.shape));
        fill(random, Node(), tensors.back()->tensor());
        inputs.push_back(tensors.back()->tensor());
    }
    const auto set = [&](ov::Tensor& tensor, size_t index, int64_t value) {
        if (tensor.get_element_type() == ov::element::i32) {
            tensor.data<int32_t>()[index] = static_cast<int32_t>(value);
        } else if (tensor.get_element_type() == ov::element::i64) {
            tensor.data<int64_t>()[index] = value;
        }
    };
    for (size_t back = 1; back <= std::min<size_t>(2, inputs.size()); ++back) {
        ov::Tensor& tensor = inputs[inputs.size() - back];
        for (size_t index = 0; index < tensor.get_size(); ++index) {
            const bool strange = index == 0 && (back == 1 ? node.reordered : node.masked);
            const int64_t usual = back == 1 ? static_cast<int64_t>(index) : 1;
            set(tensor, index, !strange ? usual : back == 1 ? node.source : 0);
        }
    }
    if (node.fewer_arguments) {
        inputs.pop_back();
    }
    const Bytes bytes = results_of(*made, inputs, ov::element::u8)[0].second;
    ExactTensor step(ov::element::u8, {bytes.size()});
    std::memcpy(step.tensor().data(), bytes.data(), bytes.size());
    shearling::StepView view{};
    const size_t rotated = inputs[0].get_shape().back();
    const char* const fault =
        shearling::read_step(static_cast<const uint8_t*>(step.tensor().data()), bytes.size(), rotated, view);
    require_kept(fault == nullptr, "a step that was made is refused");
    const ov::Shape mask = inputs[inputs.size() - 2].get_shape();
    require_kept(view.batch == mask[0] && view.positions == mask[1], "a step is of other positions");
    float sum = 0.0f;
    for (size_t word = 0; word < 2 * view.sets * view.table_words(rotated); ++word) {
        sum += view.angles[word];
    }
    for (size_t word = 0; view.mask != nullptr && word < view.batch * view.positions; ++word) {
        sum += view.mask[word];
    }
    for (size_t row = 0; view.sources != nullptr && row < view.batch; ++row) {
        sum += static_cast<float>(view.sources[row]);
    }
    volatile float read = sum;  // what is read is there
    static_cast<void>(read);
}

}  // namespace fuzz
