// The operators of set `shearling` for OpenVINO; shearling/sparse_linear/format.py specifies inputs and attributes.
#pragma once

#include <memory>
#include <mutex>
#include <openvino/op/op.hpp>
#include <string>
#include <vector>

#include "linear.hpp"

namespace shearling {

// Packed constants of one operator, validated when they are first seen and again only if they move.
class CheckedMatrices {
public:
    // Throws where a tensor is not a packed matrix of `columns[i]` columns and `rows[i]` rows.
    const std::vector<PackedMatrix>& check(const ov::TensorVector& inputs, size_t first, const std::vector<int64_t>& rows, const std::vector<int64_t>& columns) const;

private:
    mutable std::mutex mutex_;
    mutable std::vector<const void*> addresses_;
    mutable std::vector<PackedMatrix> matrices_;
};

class SparseOperator : public ov::op::Op {
public:
    bool has_evaluate() const override { return true; }

protected:
    SparseOperator() = default;
    explicit SparseOperator(const ov::OutputVector& arguments) : Op(arguments) {}
    bool visit_common_attributes(ov::AttributeVisitor& visitor);
    void copy_common_attributes(const SparseOperator& other);
    void check_common_attributes(size_t expected_inputs) const;
    void check_packed_input(size_t input, int64_t rows, int64_t columns) const;
    ov::PartialShape output_shape(int64_t rows) const;
    Settings settings() const;

    int64_t columns_ = 0;
    double norm_epsilon_ = 0.0;
    bool residual_ = false;
    std::string precision_ = "auto";
    int64_t format_version_ = 1;
    CheckedMatrices matrices_;
};

class SparseLinear : public SparseOperator {
public:
    OPENVINO_OP("SparseLinear", "shearling");
    SparseLinear() = default;
    explicit SparseLinear(const ov::OutputVector& arguments) : SparseOperator(arguments) {}
    bool visit_attributes(ov::AttributeVisitor& visitor) override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override;
    void validate_and_infer_types() override;
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

private:
    std::vector<int64_t> rows_;
    bool bias_ = false;
};

class SparseMLP : public SparseOperator {
public:
    OPENVINO_OP("SparseMLP", "shearling");
    SparseMLP() = default;
    explicit SparseMLP(const ov::OutputVector& arguments) : SparseOperator(arguments) {}
    bool visit_attributes(ov::AttributeVisitor& visitor) override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override;
    void validate_and_infer_types() override;
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

private:
    int64_t inner_ = 0;
    std::string activation_ = "silu";
    bool gated_ = true;
};

}  // namespace shearling
