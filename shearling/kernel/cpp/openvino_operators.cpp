#include "openvino_operators.hpp"

#include <memory>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/unsqueeze.hpp>

#include "openvino_checks.hpp"
#include "openvino_constants.hpp"
#include "openvino_tensors.hpp"

namespace shearling {
namespace {

Norm norm_of(const std::vector<std::vector<float>>& vectors, size_t index, double epsilon) {
    return epsilon > 0.0 ? Norm{vectors[index].data(), static_cast<float>(epsilon)} : Norm{nullptr, 0.0f};
}

// The constant at an input, or null. OpenVINO gives both inputs of what it takes for a MatMul the same rank, by an
// Unsqueeze which it folds later.
std::shared_ptr<const ConstantWeights::Constant> constant_at(const ov::Node& node, size_t input) {
    auto source = node.get_input_node_shared_ptr(input);
    while (ov::is_type<ov::op::v0::Unsqueeze>(source)) {
        source = source->get_input_node_shared_ptr(0);
    }
    return ov::as_type_ptr<const ConstantWeights::Constant>(source);
}

}  // namespace

std::shared_ptr<const Weights> SparseOperator::checked_weights(const ov::Tensor& tensor, size_t index) const {
    OPENVINO_ASSERT(
        index < weights_.size() && weights_[index] != nullptr && tensor.get_byte_size() == weights_[index]->size(),
        "the packed weights are not those that the node was validated with");
    return weights_[index]->validated();
}

bool SparseOperator::make_ready() const {
    for (const auto& weights : weights_) {
        if (weights != nullptr) {
            weights->validated();
        }
    }
    return true;
}

void SparseOperator::visit_common(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("columns", columns_);
    visitor.on_attribute("precision", precision_);
    visitor.on_attribute("format_version", format_version_);
    visitor.on_attribute("expanded", expanded_);
    for (auto& weights : weights_) {
        if (weights != nullptr && weights->layout() != expected_layout()) {
            weights = nullptr;
        }
    }
}

void SparseOperator::copy_common(const SparseOperator& other) {
    columns_ = other.columns_;
    precision_ = other.precision_;
    format_version_ = other.format_version_;
    expanded_ = other.expanded_;
    weights_ = other.weights_;
}

void SparseOperator::validate_common(
    const ov::Node& node, size_t inputs, size_t weights_input, size_t weights_count) {
    NODE_VALIDATION_CHECK(
        &node, format_version_ == 1, "format_version ", format_version_, " is not 1: made by another version");
    NODE_VALIDATION_CHECK(
        &node, precision_ == "auto" || precision_ == "exact", "precision is '", precision_, "', not auto or exact");
    NODE_VALIDATION_CHECK(
        &node, node.get_input_size() == inputs, "has ", node.get_input_size(), " inputs, its attributes ask for ",
        inputs);
    weights_.resize(weights_count);
    for (size_t index = 0; index < weights_count; ++index) {
        const auto constant = constant_at(node, weights_input + index);
        NODE_VALIDATION_CHECK(&node, constant != nullptr, "the packed weights are not a constant of the model");
        // The plugin clones and validates a node at every inference: the headers, far apart in memory, are read for the
        // first of them.
        if (weights_[index] == nullptr || !weights_[index]->shows(*constant)) {
            weights_[index] = nullptr;
            auto weights = weights_of(constant);
            const char* fault = weights->fault();
            NODE_VALIDATION_CHECK(&node, fault == nullptr, "a packed weight is corrupt: ", fault);
            weights_[index] = std::move(weights);
        }
    }
}

WeightLayout SparseOperator::expected_layout() const {
    WeightLayout expected = layout();
    expected.expanded = expanded_;
    return expected;
}

// Those of another operator with the same constant, as an embedding and its head have, or new ones.
std::shared_ptr<const ConstantWeights> SparseOperator::weights_of(
    const std::shared_ptr<const ConstantWeights::Constant>& constant) const {
    const WeightLayout expected = expected_layout();
    for (const auto& consumer : constant->output(0).get_target_inputs()) {
        const auto* other = dynamic_cast<const SparseOperator*>(consumer.get_node());
        if (other == nullptr) {
            continue;
        }
        for (const auto& weights : other->weights_) {
            if (weights != nullptr && weights->shows(*constant) && weights->layout() == expected) {
                return weights;
            }
        }
    }
    return std::make_shared<const ConstantWeights>(constant, expected);
}

void SparseOperator::validate_products(
    ov::Node& node, size_t inputs, size_t weights_input, const std::vector<int64_t>& widths) {
    validate_common(node, inputs, weights_input);
    check_activation(node, 0, columns_);
    ov::PartialShape shape = node.get_input_partial_shape(0);
    node.set_output_size(widths.size());
    for (size_t index = 0; index < widths.size(); ++index) {
        if (shape.rank().is_static()) {
            shape[shape.size() - 1] = widths[index];
        }
        node.set_output_type(index, node.get_input_element_type(0), shape);
    }
}

void MlpAttributes::visit(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("inner", inner);
    visitor.on_attribute("activation", activation);
    visitor.on_attribute("gated", gated);
}

void MlpAttributes::add_to(WeightLayout& layout, int64_t hidden) const {
    layout.matrices.insert(layout.matrices.end(), gated ? 2 : 1, {inner, hidden});
    layout.matrices.emplace_back(hidden, inner);
}

Mlp MlpAttributes::mlp(const PackedMatrix* matrices, const Norm& norm) const {
    const Function function = activation == "silu" ? Function::silu
                              : activation == "gelu_erf" ? Function::gelu_erf
                              : activation == "gelu_tanh" ? Function::gelu_tanh
                                                          : Function::relu;
    const PackedMatrix* up = gated ? matrices + 1 : matrices;
    return {gated ? matrices : nullptr, up, up + 1, function, norm};
}

WeightLayout SparseLinear::layout() const {
    WeightLayout layout;
    for (const int64_t rows : rows_) {
        layout.matrices.emplace_back(rows, columns_);
    }
    layout.side_by_side = rows_.size();
    if (norm_epsilon_ > 0.0) {
        layout.vectors.push_back(columns_);
    }
    if (bias_) {
        layout.vectors.insert(layout.vectors.end(), rows_.begin(), rows_.end());
    }
    return layout;
}

bool SparseLinear::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("rows", rows_);
    visitor.on_attribute("norm_epsilon", norm_epsilon_);
    visitor.on_attribute("bias", bias_);
    visitor.on_attribute("residual", residual_);
    visit_common(visitor);
    return true;
}

std::shared_ptr<ov::Node> SparseLinear::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto clone = std::make_shared<SparseLinear>(arguments);
    clone->copy_common(*this);
    clone->rows_ = rows_;
    clone->norm_epsilon_ = norm_epsilon_;
    clone->bias_ = bias_;
    clone->residual_ = residual_;
    clone->validate_and_infer_types();
    return clone;
}

void SparseLinear::validate_and_infer_types() {
    NODE_VALIDATION_CHECK(
        this, !rows_.empty() && (!residual_ || rows_.size() == 1), "a residual needs one matrix, there are ",
        rows_.size());
    check_epsilon(*this, "norm_epsilon", norm_epsilon_);
    validate_products(*this, residual_ ? 3 : 2, 1, rows_);
    if (residual_) {
        check_activation(*this, 2, rows_[0]);
    }
}

bool SparseLinear::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    require_counts(inputs, residual_ ? 3 : 2, outputs, rows_.size());
    const auto weights = checked_weights(inputs[1]);
    const Floats x(inputs[0], columns_), residual(inputs[residual_ ? 2 : 0], residual_ ? rows_[0] : columns_);
    OPENVINO_ASSERT(residual.rows.count == x.rows.count, "a residual of shape ", inputs.back().get_shape());
    Results results(outputs, 0, inputs[0].get_shape(), rows_, bias_ ? &weights->vectors : nullptr);
    if (residual_) {
        results.outputs[0].residual = residual.rows.data;
        results.outputs[0].residual_stride = residual.rows.stride;
    }
    multiply(
        weights->matrices.data(), rows_.size(), x.rows, norm_of(weights->vectors, 0, norm_epsilon_),
        results.outputs.data(), settings());
    return true;
}

WeightLayout SparseMLP::layout() const {
    WeightLayout layout;
    mlp_.add_to(layout, columns_);
    if (norm_epsilon_ > 0.0) {
        layout.vectors.push_back(columns_);
    }
    return layout;
}

bool SparseMLP::visit_attributes(ov::AttributeVisitor& visitor) {
    mlp_.visit(visitor);
    visitor.on_attribute("norm_epsilon", norm_epsilon_);
    visitor.on_attribute("residual", residual_);
    visit_common(visitor);
    return true;
}

std::shared_ptr<ov::Node> SparseMLP::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto clone = std::make_shared<SparseMLP>(arguments);
    clone->copy_common(*this);
    clone->mlp_ = mlp_;
    clone->norm_epsilon_ = norm_epsilon_;
    clone->residual_ = residual_;
    clone->validate_and_infer_types();
    return clone;
}

void SparseMLP::validate_and_infer_types() {
    NODE_VALIDATION_CHECK(
        this, mlp_.known(), "activation is '", mlp_.activation, "', not silu, gelu_erf, gelu_tanh or relu");
    check_epsilon(*this, "norm_epsilon", norm_epsilon_);
    validate_products(*this, 2, 1, {columns_});
}

bool SparseMLP::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    require_counts(inputs, 2, outputs, 1);
    const auto weights = checked_weights(inputs[1]);
    const Floats x(inputs[0], columns_);
    Results results(outputs, 0, inputs[0].get_shape(), {columns_}, nullptr);
    if (residual_) {
        results.outputs[0].residual = x.rows.data;
        results.outputs[0].residual_stride = x.rows.stride;
    }
    multiply(
        mlp_.mlp(weights->matrices.data(), norm_of(weights->vectors, 0, norm_epsilon_)), x.rows, results.outputs[0],
        settings());
    return true;
}

void LayerAttributes::visit(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("rows", rows);
    visitor.on_attribute("hidden", hidden);
    mlp.visit(visitor);
    visitor.on_attribute("projection_epsilon", projection_epsilon);
    visitor.on_attribute("norm_epsilon", norm_epsilon);
    visitor.on_attribute("mlp_epsilon", mlp_epsilon);
    visitor.on_attribute("next_epsilon", next_epsilon);
    visitor.on_attribute("bias", bias);
}

void LayerAttributes::check(const ov::Node& node) const {
    NODE_VALIDATION_CHECK(
        &node, mlp.known(), "activation is '", mlp.activation, "', not silu, gelu_erf, gelu_tanh or relu");
    check_epsilon(node, "projection_epsilon", projection_epsilon);
    check_epsilon(node, "norm_epsilon", norm_epsilon);
    check_epsilon(node, "mlp_epsilon", mlp_epsilon);
    check_epsilon(node, "next_epsilon", next_epsilon);
}

WeightLayout LayerAttributes::layout(int64_t columns) const {
    WeightLayout layout;
    layout.matrices.emplace_back(hidden, columns);
    mlp.add_to(layout, hidden);
    for (const int64_t count : rows) {
        layout.matrices.emplace_back(count, hidden);
    }
    layout.side_by_side = rows.size();
    for (const double epsilon : {projection_epsilon, norm_epsilon, mlp_epsilon, next_epsilon}) {
        layout.vectors.insert(layout.vectors.end(), epsilon > 0.0 ? 1 : 0, hidden);
    }
    if (bias) {
        layout.vectors.insert(layout.vectors.end(), rows.begin(), rows.end());
    }
    return layout;
}

Layer LayerAttributes::layer(const Weights& weights) const {
    const PackedMatrix* matrices = weights.matrices.data();
    size_t place = 0;
    const auto norm = [&](double epsilon) { return norm_of(weights.vectors, epsilon > 0.0 ? place++ : 0, epsilon); };
    const Norm projection = norm(projection_epsilon), entry = norm(norm_epsilon), end = norm(mlp_epsilon),
               next = norm(next_epsilon);
    return {
        matrices, projection, mlp.mlp(matrices + 1, entry), end, next, matrices + 1 + mlp.matrix_count(),
        rows.size()};
}

WeightLayout SparseLayer::layout() const { return layer_.layout(columns_); }

bool SparseLayer::visit_attributes(ov::AttributeVisitor& visitor) {
    layer_.visit(visitor);
    visit_common(visitor);
    return true;
}

std::shared_ptr<ov::Node> SparseLayer::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto clone = std::make_shared<SparseLayer>(arguments);
    clone->copy_common(*this);
    clone->layer_ = layer_;
    clone->validate_and_infer_types();
    return clone;
}

void SparseLayer::validate_and_infer_types() {
    layer_.check(*this);
    std::vector<int64_t> widths{layer_.hidden};
    widths.insert(widths.end(), layer_.rows.begin(), layer_.rows.end());
    validate_products(*this, 3, 2, widths);
    check_activation(*this, 1, layer_.hidden);
}

bool SparseLayer::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    require_counts(inputs, 3, outputs, 1 + layer_.rows.size());
    const auto weights = checked_weights(inputs[2]);
    const Floats x(inputs[0], columns_), residual(inputs[1], layer_.hidden);
    OPENVINO_ASSERT(residual.rows.count == x.rows.count, "a residual of shape ", inputs[1].get_shape());
    const ov::Shape shape = inputs[0].get_shape();
    const Results y(outputs, 0, shape, {layer_.hidden}, nullptr);
    const Results z(outputs, 1, shape, layer_.rows, layer_.biases(*weights));
    multiply(layer_.layer(*weights), x.rows, residual.rows, y.outputs[0].data, z.outputs.data(), settings());
    return true;
}

WeightLayout SparseHead::layout() const { return {{{rows_, columns_}}, {}}; }

bool SparseHead::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("rows", rows_);
    visit_common(visitor);
    return true;
}

std::shared_ptr<ov::Node> SparseHead::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto clone = std::make_shared<SparseHead>(arguments);
    clone->copy_common(*this);
    clone->rows_ = rows_;
    clone->validate_and_infer_types();
    return clone;
}

void SparseHead::validate_and_infer_types() { validate_products(*this, 2, 1, {rows_}); }

bool SparseHead::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    require_counts(inputs, 2, outputs, 1);
    const auto weights = checked_weights(inputs[1]);
    const Floats x(inputs[0], columns_);
    const Results results(outputs, 0, inputs[0].get_shape(), {rows_}, nullptr);
    multiply(weights->matrices.data(), 1, x.rows, Norm{nullptr, 0.0f}, results.outputs.data(), settings());
    return true;
}

WeightLayout SparseEmbedding::layout() const { return {{{rows_, columns_}}, {}}; }

bool SparseEmbedding::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("rows", rows_);
    visit_common(visitor);
    return true;
}

std::shared_ptr<ov::Node> SparseEmbedding::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto clone = std::make_shared<SparseEmbedding>(arguments);
    clone->copy_common(*this);
    clone->rows_ = rows_;
    clone->validate_and_infer_types();
    return clone;
}

void SparseEmbedding::validate_and_infer_types() {
    validate_common(*this, 2, 1);
    const ov::element::Type type = get_input_element_type(0);
    NODE_VALIDATION_CHECK(
        this, type == ov::element::i32 || type == ov::element::i64 || type.is_dynamic(), "the tokens are ", type);
    ov::PartialShape shape = get_input_partial_shape(0);
    if (shape.rank().is_static()) {
        shape.push_back(columns_);
    }
    set_output_type(0, ov::element::f32, shape);
}

bool SparseEmbedding::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    require_counts(inputs, 2, outputs, 1);
    const auto weights = checked_weights(inputs[1]);
    const ov::Tensor& tokens = inputs[0];
    ov::Shape shape = tokens.get_shape();
    shape.push_back(static_cast<size_t>(columns_));
    outputs[0].set_shape(shape);
    const bool wide = tokens.get_element_type() == ov::element::i64;
    const int64_t* const wide_tokens = wide ? tokens.data<const int64_t>() : nullptr;
    const int32_t* const narrow_tokens = wide ? nullptr : tokens.data<const int32_t>();
    float* row = outputs[0].data<float>();
    for (size_t index = 0; index < tokens.get_size(); ++index, row += columns_) {
        const int64_t token = wide ? wide_tokens[index] : narrow_tokens[index];
        // From the end where it is negative, as in the Gather that this replaces: GenAI fills places with -1.
        const int64_t place = token < 0 ? token + rows_ : token;
        OPENVINO_ASSERT(place >= 0 && place < rows_, "token ", token, " is not in a vocabulary of ", rows_);
        read_row(weights->matrices[0], static_cast<size_t>(place), row);
    }
    return true;
}

}  // namespace shearling

namespace {

std::vector<ov::Extension::Ptr> extensions() {
    std::vector<ov::Extension::Ptr> all{
        std::make_shared<ov::OpExtension<shearling::SparseLinear>>(),
        std::make_shared<ov::OpExtension<shearling::SparseMLP>>(),
        std::make_shared<ov::OpExtension<shearling::SparseLayer>>(),
        std::make_shared<ov::OpExtension<shearling::SparseDecoder>>(),
        std::make_shared<ov::OpExtension<shearling::SparseStep>>(),
        std::make_shared<ov::OpExtension<shearling::SparseHead>>(),
        std::make_shared<ov::OpExtension<shearling::SparseEmbedding>>()};
    for (auto& constant : shearling::constant_extensions()) {
        all.push_back(std::move(constant));
    }
    return all;
}

}  // namespace

OPENVINO_CREATE_EXTENSIONS(extensions());
