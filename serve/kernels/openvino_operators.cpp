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

// A tensor as f32: itself, or a converted copy.
class Floats {
public:
    explicit Floats(const ov::Tensor& tensor) : copy_(tensor.get_element_type() == ov::element::f32 ? 0 : tensor.get_size() * sizeof(float)) {
        if (tensor.get_element_type() == ov::element::f32) {
            data = tensor.data<const float>();
            return;
        }
        if (tensor.get_element_type() == ov::element::bf16) {
            widen(tensor.data<const ov::bfloat16>(), tensor.get_size(), copy_.floats());
        } else {
            widen(tensor.data<const ov::float16>(), tensor.get_size(), copy_.floats());
        }
        data = copy_.floats();
    }
    const float* data;

private:
    Buffer copy_;
};

// Where a result goes: straight into the tensor, or through f32 into a narrower one.
class FloatTarget {
public:
    explicit FloatTarget(ov::Tensor& tensor)
        : tensor_(tensor), copy_(direct() ? 0 : tensor.get_size() * sizeof(float)), data(direct() ? tensor.data<float>() : copy_.floats()) {}
    ~FloatTarget() {
        if (tensor_.get_element_type() == ov::element::bf16) {
            narrow(data, tensor_.get_size(), tensor_.data<ov::bfloat16>());
        } else if (tensor_.get_element_type() == ov::element::f16) {
            narrow(data, tensor_.get_size(), tensor_.data<ov::float16>());
        }
    }
    FloatTarget(const FloatTarget&) = delete;
    FloatTarget& operator=(const FloatTarget&) = delete;

private:
    bool direct() const { return tensor_.get_element_type() == ov::element::f32; }
    ov::Tensor& tensor_;
    Buffer copy_;

public:
    float* data;
};

size_t row_count(const ov::Shape& shape) { return ov::shape_size(shape.begin(), shape.end() - 1); }

ov::Shape with_last(ov::Shape shape, size_t last) {
    shape.back() = last;
    return shape;
}

bool readable(ov::element::Type type) {
    return type == ov::element::f32 || type == ov::element::bf16 || type == ov::element::f16 || type.is_dynamic();
}

Function function_of(const std::string& name) {
    return name == "silu" ? Function::silu : name == "gelu_erf" ? Function::gelu_erf : name == "gelu_tanh" ? Function::gelu_tanh : Function::relu;
}

}  // namespace

const std::vector<PackedMatrix>& CheckedMatrices::check(const ov::TensorVector& inputs, size_t first, const std::vector<int64_t>& rows,
                                                        const std::vector<int64_t>& columns) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    bool known = addresses_.size() == rows.size();
    for (size_t index = 0; known && index < rows.size(); ++index) {
        known = addresses_[index] == inputs[first + index].data();
    }
    if (known) {
        return matrices_;
    }
    std::vector<const void*> addresses;
    std::vector<PackedMatrix> matrices(rows.size());
    for (size_t index = 0; index < rows.size(); ++index) {
        const ov::Tensor& packed = inputs[first + index];
        const char* fault = read_header(packed.data<const uint8_t>(), packed.get_byte_size(), matrices[index]);
        fault = fault != nullptr ? fault : validate(matrices[index]);
        OPENVINO_ASSERT(fault == nullptr, "a packed weight is corrupt: ", fault);
        OPENVINO_ASSERT(matrices[index].rows == static_cast<size_t>(rows[index]) && matrices[index].columns == static_cast<size_t>(columns[index]),
                        "a packed weight is ", matrices[index].rows, " x ", matrices[index].columns, ", its operator expects ", rows[index], " x ", columns[index]);
        addresses.push_back(packed.data());
    }
    addresses_ = std::move(addresses);
    matrices_ = std::move(matrices);
    return matrices_;
}

bool SparseOperator::visit_common_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("columns", columns_);
    visitor.on_attribute("norm_epsilon", norm_epsilon_);
    visitor.on_attribute("residual", residual_);
    visitor.on_attribute("precision", precision_);
    visitor.on_attribute("format_version", format_version_);
    return true;
}

void SparseOperator::copy_common_attributes(const SparseOperator& other) {
    columns_ = other.columns_;
    norm_epsilon_ = other.norm_epsilon_;
    residual_ = other.residual_;
    precision_ = other.precision_;
    format_version_ = other.format_version_;
}

void SparseOperator::check_common_attributes(size_t expected_inputs) const {
    NODE_VALIDATION_CHECK(this, format_version_ == 1, "format_version ", format_version_, " is not 1: made by another version");
    NODE_VALIDATION_CHECK(this, columns_ > 0, "columns is ", columns_);
    NODE_VALIDATION_CHECK(this, precision_ == "auto" || precision_ == "exact", "precision is '", precision_, "', not auto or exact");
    NODE_VALIDATION_CHECK(this, norm_epsilon_ >= 0.0, "norm_epsilon is ", norm_epsilon_);
    NODE_VALIDATION_CHECK(this, get_input_size() == expected_inputs, "has ", get_input_size(), " inputs, its attributes ask for ", expected_inputs);
    NODE_VALIDATION_CHECK(this, readable(get_input_element_type(0)), "the activations are ", get_input_element_type(0));
    const ov::PartialShape& shape = get_input_partial_shape(0);
    if (shape.rank().is_static()) {
        NODE_VALIDATION_CHECK(this, shape.size() > 0 && shape[shape.size() - 1].compatible(columns_), "activations ", shape, " do not end in ", columns_);
    }
}

void SparseOperator::check_packed_input(size_t input, int64_t rows, int64_t columns) const {
    NODE_VALIDATION_CHECK(this, rows > 0, "a matrix of ", rows, " rows");
    NODE_VALIDATION_CHECK(this, get_input_element_type(input).compatible(ov::element::u8), "input ", input, " is ", get_input_element_type(input), ", not u8");
    if (const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(get_input_node_shared_ptr(input))) {
        PackedMatrix matrix;
        const char* fault = read_header(constant->get_data_ptr<uint8_t>(), constant->get_byte_size(), matrix);
        NODE_VALIDATION_CHECK(this, fault == nullptr, "a packed weight is corrupt: ", fault);
        NODE_VALIDATION_CHECK(this, matrix.rows == static_cast<size_t>(rows) && matrix.columns == static_cast<size_t>(columns), "a packed weight is ", matrix.rows,
                              " x ", matrix.columns, ", expected ", rows, " x ", columns);
    }
}

ov::PartialShape SparseOperator::output_shape(int64_t rows) const {
    ov::PartialShape shape = get_input_partial_shape(0);
    if (shape.rank().is_static()) {
        shape[shape.size() - 1] = rows;
    }
    return shape;
}

Settings SparseOperator::settings() const { return {best_kernels(), precision_ == "exact" ? Precision::exact : Precision::automatic}; }

bool SparseLinear::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("rows", rows_);
    visitor.on_attribute("bias", bias_);
    return visit_common_attributes(visitor);
}

std::shared_ptr<ov::Node> SparseLinear::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto clone = std::make_shared<SparseLinear>(arguments);
    clone->copy_common_attributes(*this);
    clone->rows_ = rows_;
    clone->bias_ = bias_;
    clone->constructor_validate_and_infer_types();
    return clone;
}

void SparseLinear::validate_and_infer_types() {
    const size_t count = rows_.size();
    NODE_VALIDATION_CHECK(this, count > 0 && (!residual_ || count == 1), "a residual needs one matrix, there are ", count);
    check_common_attributes(1 + count + (norm_epsilon_ > 0.0 ? 1 : 0) + (bias_ ? count : 0) + (residual_ ? 1 : 0));
    set_output_size(count);
    for (size_t index = 0; index < count; ++index) {
        check_packed_input(1 + index, rows_[index], columns_);
        set_output_type(index, get_input_element_type(0), output_shape(rows_[index]));
    }
}

bool SparseLinear::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const size_t count = rows_.size();
    const auto& matrices = matrices_.check(inputs, 1, rows_, std::vector<int64_t>(count, columns_));
    const ov::Shape shape = inputs[0].get_shape();
    size_t next = 1 + count;
    const Floats x(inputs[0]);
    const Floats gamma(norm_epsilon_ > 0.0 ? inputs[next++] : inputs[0]);
    std::vector<std::unique_ptr<Floats>> biases;
    for (size_t index = 0; bias_ && index < count; ++index) {
        biases.push_back(std::make_unique<Floats>(inputs[next++]));
    }
    const Floats residual(residual_ ? inputs[next] : inputs[0]);
    std::vector<std::unique_ptr<FloatTarget>> targets;
    std::vector<Output> results;
    for (size_t index = 0; index < count; ++index) {
        const auto rows = static_cast<size_t>(rows_[index]);
        outputs[index].set_shape(with_last(shape, rows));
        targets.push_back(std::make_unique<FloatTarget>(outputs[index]));
        results.push_back({targets.back()->data, rows, bias_ ? biases[index]->data : nullptr, residual_ ? residual.data : nullptr, rows});
    }
    const auto columns = static_cast<size_t>(columns_);
    const Norm norm{norm_epsilon_ > 0.0 ? gamma.data : nullptr, static_cast<float>(norm_epsilon_)};
    multiply(matrices.data(), count, Rows{x.data, row_count(shape), columns}, norm, results.data(), settings());
    return true;
}

bool SparseMLP::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("inner", inner_);
    visitor.on_attribute("activation", activation_);
    visitor.on_attribute("gated", gated_);
    return visit_common_attributes(visitor);
}

std::shared_ptr<ov::Node> SparseMLP::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto clone = std::make_shared<SparseMLP>(arguments);
    clone->copy_common_attributes(*this);
    clone->inner_ = inner_;
    clone->activation_ = activation_;
    clone->gated_ = gated_;
    clone->constructor_validate_and_infer_types();
    return clone;
}

void SparseMLP::validate_and_infer_types() {
    const bool known = activation_ == "silu" || activation_ == "gelu_erf" || activation_ == "gelu_tanh" || activation_ == "relu";
    NODE_VALIDATION_CHECK(this, known, "activation is '", activation_, "', not silu, gelu_erf, gelu_tanh or relu");
    NODE_VALIDATION_CHECK(this, inner_ > 0, "inner is ", inner_);
    check_common_attributes(3 + (gated_ ? 1 : 0) + (norm_epsilon_ > 0.0 ? 1 : 0));
    size_t next = 1;
    if (gated_) {
        check_packed_input(next++, inner_, columns_);
    }
    check_packed_input(next++, inner_, columns_);
    check_packed_input(next, columns_, inner_);
    set_output_type(0, get_input_element_type(0), output_shape(columns_));
}

bool SparseMLP::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    std::vector<int64_t> rows{inner_, columns_};
    std::vector<int64_t> columns{columns_, inner_};
    if (gated_) {
        rows.insert(rows.begin(), inner_);
        columns.insert(columns.begin(), columns_);
    }
    const auto& matrices = matrices_.check(inputs, 1, rows, columns);
    const ov::Shape shape = inputs[0].get_shape();
    const auto width = static_cast<size_t>(columns_);
    const Floats x(inputs[0]);
    const Floats gamma(norm_epsilon_ > 0.0 ? inputs[1 + matrices.size()] : inputs[0]);
    outputs[0].set_shape(shape);
    const FloatTarget target(outputs[0]);
    const Mlp mlp{gated_ ? &matrices[0] : nullptr, &matrices[matrices.size() - 2], &matrices[matrices.size() - 1], function_of(activation_)};
    const Norm norm{norm_epsilon_ > 0.0 ? gamma.data : nullptr, static_cast<float>(norm_epsilon_)};
    multiply(mlp, Rows{x.data, row_count(shape), width}, norm, Output{target.data, width, nullptr, residual_ ? x.data : nullptr, width}, settings());
    return true;
}

}  // namespace shearling

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>(
    {std::make_shared<ov::OpExtension<shearling::SparseLinear>>(), std::make_shared<ov::OpExtension<shearling::SparseMLP>>()}));
