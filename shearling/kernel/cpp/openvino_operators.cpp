#include "openvino_operators.hpp"

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/constant.hpp>

#include "buffer.hpp"

namespace shearling {
namespace {

template <class Number>
void widen(const Number* from, size_t count, float* to) {
    for (size_t index = 0; index < count; ++index) {
        to[index] = static_cast<float>(from[index]);
    }
}

template <class Number>
void narrow(const float* from, size_t count, Number* to) {
    for (size_t index = 0; index < count; ++index) {
        to[index] = static_cast<Number>(from[index]);
    }
}

bool is_f32(const ov::Tensor& tensor) { return tensor.get_element_type() == ov::element::f32; }

// A tensor as rows of f32: itself, or a converted copy.
class Floats {
public:
    explicit Floats(const ov::Tensor& tensor) : copy_(is_f32(tensor) ? 0 : tensor.get_size() * sizeof(float)) {
        const float* data = copy_.floats();
        if (is_f32(tensor)) {
            data = tensor.data<const float>();
        } else if (tensor.get_element_type() == ov::element::bf16) {
            widen(tensor.data<const ov::bfloat16>(), tensor.get_size(), copy_.floats());
        } else {
            widen(tensor.data<const ov::float16>(), tensor.get_size(), copy_.floats());
        }
        const size_t width = tensor.get_shape().back();
        rows = {data, width == 0 ? 0 : tensor.get_size() / width, width};
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
        if (!is_f32(tensor)) {
            copy_.reserve(tensor.get_size() * sizeof(float));
        }
        data = is_f32(tensor) ? tensor.data<float>() : copy_.floats();
    }
    ~FloatTarget() {
        if (tensor_.get_element_type() == ov::element::bf16) {
            narrow(data, tensor_.get_size(), tensor_.data<ov::bfloat16>());
        } else if (tensor_.get_element_type() == ov::element::f16) {
            narrow(data, tensor_.get_size(), tensor_.data<ov::float16>());
        }
    }
    FloatTarget(const FloatTarget&) = delete;
    FloatTarget& operator=(const FloatTarget&) = delete;
    float* data;

private:
    ov::Tensor& tensor_;
    Buffer copy_;
};

bool readable(ov::element::Type type) {
    return type == ov::element::f32 || type == ov::element::bf16 || type == ov::element::f16 || type.is_dynamic();
}

Norm norm_of(const std::vector<std::vector<float>>& vectors, size_t index, double epsilon) {
    return epsilon > 0.0 ? Norm{vectors[index].data(), static_cast<float>(epsilon)} : Norm{nullptr, 0.0f};
}

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

}  // namespace

std::shared_ptr<const Weights> SparseOperator::checked_weights(const ov::Tensor& tensor) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (address_ != tensor.data()) {
        auto weights = std::make_shared<Weights>();
        const char* fault = take_weights(tensor.data<const uint8_t>(), tensor.get_byte_size(), layout(), *weights);
        OPENVINO_ASSERT(fault == nullptr, "a packed weight is corrupt: ", fault);
        weights_ = std::move(weights);
        address_ = tensor.data();
    }
    return weights_;
}

void SparseOperator::visit_common(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("columns", columns_);
    visitor.on_attribute("precision", precision_);
    visitor.on_attribute("format_version", format_version_);
}

void SparseOperator::copy_common(const SparseOperator& other) {
    columns_ = other.columns_;
    precision_ = other.precision_;
    format_version_ = other.format_version_;
    read_ = other.read_;
}

void SparseOperator::validate_common(const ov::Node& node, size_t inputs, size_t weights_input) {
    NODE_VALIDATION_CHECK(
        &node, format_version_ == 1, "format_version ", format_version_, " is not 1: made by another version");
    NODE_VALIDATION_CHECK(
        &node, precision_ == "auto" || precision_ == "exact", "precision is '", precision_, "', not auto or exact");
    NODE_VALIDATION_CHECK(
        &node, node.get_input_size() == inputs, "has ", node.get_input_size(), " inputs, its attributes ask for ",
        inputs);
    const auto constant = ov::as_type<ov::op::v0::Constant>(node.get_input_node_ptr(weights_input));
    // The plugin clones and validates a node at every inference: the headers, far apart in memory, are read for the
    // first of them.
    const void* const data = constant == nullptr ? nullptr : constant->get_data_ptr();
    if (data != nullptr && data == read_) {
        return;
    }
    const WeightLayout expected = layout();
    for (const auto& [rows, columns] : expected.matrices) {
        NODE_VALIDATION_CHECK(&node, rows > 0 && columns > 0, "a matrix of ", rows, " x ", columns);
    }
    if (data != nullptr) {
        std::vector<PackedMatrix> matrices;
        size_t end = 0;
        const char* fault =
            read_layout(static_cast<const uint8_t*>(data), constant->get_byte_size(), expected, matrices, end);
        NODE_VALIDATION_CHECK(&node, fault == nullptr, "a packed weight is corrupt: ", fault);
    }
    read_ = data;
}

void SparseOperator::validate_products(
    ov::Node& node, size_t inputs, size_t weights_input, const std::vector<int64_t>& widths) {
    validate_common(node, inputs, weights_input);
    NODE_VALIDATION_CHECK(
        &node, readable(node.get_input_element_type(0)), "the activations are ", node.get_input_element_type(0));
    ov::PartialShape shape = node.get_input_partial_shape(0);
    const bool ranked = shape.rank().is_static();
    NODE_VALIDATION_CHECK(
        &node, !ranked || (shape.size() > 0 && shape[shape.size() - 1].compatible(columns_)), "activations ", shape,
        " do not end in ", columns_);
    node.set_output_size(widths.size());
    for (size_t index = 0; index < widths.size(); ++index) {
        if (ranked) {
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
    NODE_VALIDATION_CHECK(this, norm_epsilon_ >= 0.0, "norm_epsilon is ", norm_epsilon_);
    validate_products(*this, residual_ ? 3 : 2, 1, rows_);
}

bool SparseLinear::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const auto weights = checked_weights(inputs[1]);
    const Floats x(inputs[0]), residual(residual_ ? inputs[2] : inputs[0]);
    Results results(outputs, 0, inputs[0].get_shape(), rows_, bias_ ? &weights->vectors : nullptr);
    if (residual_) {
        OPENVINO_ASSERT(
            residual.rows.count == x.rows.count && residual.rows.stride == results.outputs[0].stride,
            "a residual of shape ", inputs[2].get_shape());
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
    NODE_VALIDATION_CHECK(this, norm_epsilon_ >= 0.0, "norm_epsilon is ", norm_epsilon_);
    validate_products(*this, 2, 1, {columns_});
}

bool SparseMLP::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const auto weights = checked_weights(inputs[1]);
    const Floats x(inputs[0]);
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

WeightLayout SparseLayer::layout() const {
    WeightLayout layout;
    layout.matrices.emplace_back(hidden_, columns_);
    mlp_.add_to(layout, hidden_);
    for (const int64_t rows : rows_) {
        layout.matrices.emplace_back(rows, hidden_);
    }
    layout.vectors.insert(layout.vectors.end(), (norm_epsilon_ > 0.0 ? 1 : 0) + (next_epsilon_ > 0.0 ? 1 : 0), hidden_);
    if (bias_) {
        layout.vectors.insert(layout.vectors.end(), rows_.begin(), rows_.end());
    }
    return layout;
}

bool SparseLayer::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("rows", rows_);
    visitor.on_attribute("hidden", hidden_);
    mlp_.visit(visitor);
    visitor.on_attribute("norm_epsilon", norm_epsilon_);
    visitor.on_attribute("next_epsilon", next_epsilon_);
    visitor.on_attribute("bias", bias_);
    visit_common(visitor);
    return true;
}

std::shared_ptr<ov::Node> SparseLayer::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto clone = std::make_shared<SparseLayer>(arguments);
    clone->copy_common(*this);
    clone->rows_ = rows_;
    clone->hidden_ = hidden_;
    clone->mlp_ = mlp_;
    clone->norm_epsilon_ = norm_epsilon_;
    clone->next_epsilon_ = next_epsilon_;
    clone->bias_ = bias_;
    clone->validate_and_infer_types();
    return clone;
}

void SparseLayer::validate_and_infer_types() {
    NODE_VALIDATION_CHECK(
        this, mlp_.known(), "activation is '", mlp_.activation, "', not silu, gelu_erf, gelu_tanh or relu");
    NODE_VALIDATION_CHECK(
        this, norm_epsilon_ >= 0.0 && next_epsilon_ >= 0.0, "norm_epsilon is ", norm_epsilon_, ", next_epsilon ",
        next_epsilon_);
    std::vector<int64_t> widths{hidden_};
    widths.insert(widths.end(), rows_.begin(), rows_.end());
    validate_products(*this, 3, 2, widths);
}

bool SparseLayer::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const auto weights = checked_weights(inputs[2]);
    const Floats x(inputs[0]), residual(inputs[1]);
    OPENVINO_ASSERT(
        residual.rows.count == x.rows.count && residual.rows.stride == static_cast<size_t>(hidden_),
        "a residual of shape ", inputs[1].get_shape());
    const ov::Shape shape = inputs[0].get_shape();
    const Results y(outputs, 0, shape, {hidden_}, nullptr);
    const Results z(outputs, 1, shape, rows_, bias_ ? &weights->vectors : nullptr);
    const PackedMatrix* matrices = weights->matrices.data();
    const Mlp mlp = mlp_.mlp(matrices + 1, norm_of(weights->vectors, 0, norm_epsilon_));
    const Norm norm = norm_of(weights->vectors, norm_epsilon_ > 0.0 ? 1 : 0, next_epsilon_);
    const Layer layer{matrices, mlp, norm, matrices + 1 + mlp_.matrix_count(), rows_.size()};
    multiply(layer, x.rows, residual.rows, y.outputs[0].data, z.outputs.data(), settings());
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
    const auto weights = checked_weights(inputs[1]);
    const Floats x(inputs[0]);
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

PackedMatrix SparseEmbedding::checked_matrix(const ov::Tensor& tensor) const {
    const std::lock_guard<std::mutex> lock(matrix_mutex_);
    if (matrix_address_ != tensor.data()) {
        std::vector<PackedMatrix> matrices;
        size_t end = 0;
        const char* fault = read_layout(tensor.data<const uint8_t>(), tensor.get_byte_size(), layout(), matrices, end);
        fault = fault != nullptr ? fault : validate(matrices[0]);
        OPENVINO_ASSERT(fault == nullptr, "a packed weight is corrupt: ", fault);
        matrix_ = matrices[0];
        matrix_address_ = tensor.data();
    }
    return matrix_;
}

bool SparseEmbedding::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const PackedMatrix matrix = checked_matrix(inputs[1]);
    ov::Shape shape = inputs[0].get_shape();
    shape.push_back(matrix.columns);
    outputs[0].set_shape(shape);
    const bool wide = inputs[0].get_element_type() == ov::element::i64;
    float* row = outputs[0].data<float>();
    for (size_t index = 0; index < inputs[0].get_size(); ++index, row += matrix.columns) {
        const int64_t token = wide ? inputs[0].data<const int64_t>()[index] : inputs[0].data<const int32_t>()[index];
        OPENVINO_ASSERT(token >= 0 && token < rows_, "token ", token, " is not in a vocabulary of ", rows_);
        read_row(matrix, static_cast<size_t>(token), row);
    }
    return true;
}

}  // namespace shearling

OPENVINO_CREATE_EXTENSIONS(
    std::vector<ov::Extension::Ptr>(
        {std::make_shared<ov::OpExtension<shearling::SparseLinear>>(),
         std::make_shared<ov::OpExtension<shearling::SparseMLP>>(),
         std::make_shared<ov::OpExtension<shearling::SparseLayer>>(),
         std::make_shared<ov::OpExtension<shearling::SparseHead>>(),
         std::make_shared<ov::OpExtension<shearling::SparseEmbedding>>()}));
