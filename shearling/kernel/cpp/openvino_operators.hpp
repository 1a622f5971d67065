// The operators of set `shearling` for OpenVINO; shearling/kernel/packed_format.py specifies inputs and attributes.
#pragma once

#include <memory>
#include <openvino/op/matmul.hpp>
#include <openvino/op/op.hpp>
#include <string>
#include <vector>

#include "attention.hpp"
#include "constant_weights.hpp"
#include "linear.hpp"
#include "tbb_threads.hpp"

namespace shearling {

// What the operators share: packed weights at an input, which is a constant, or at several of the same layout, and how
// to multiply by them. A file that says otherwise is refused when its nodes are made; what only an inference shows, at
// every inference.
class SparseOperator {
public:
    virtual ~SparseOperator() = default;

protected:
    // What the attributes of its own say; `expanded` is set for all alike.
    virtual WeightLayout layout() const = 0;
    // Comes last of what an operator visits: weights that were checked for other attributes are forgotten.
    void visit_common(ov::AttributeVisitor& visitor);
    // Throws where attributes, inputs or the weights of `node`, which this is a part of, do not fit.
    void validate_common(const ov::Node& node, size_t inputs, size_t weights_input, size_t weights_count = 1);
    // The same for a node whose first input is an activation of `columns`; sets its results, of these widths.
    void validate_products(ov::Node& node, size_t inputs, size_t weights_input, const std::vector<int64_t>& widths);
    void copy_common(const SparseOperator& other);
    // The weights of a validated node, which an evaluation is handed as `tensor`. Throws where they are not what the
    // layout says.
    std::shared_ptr<const Weights> checked_weights(const ov::Tensor& tensor, size_t index = 0) const;
    // Takes the weights of a validated node, and says that it can be computed: a runtime asks for that when it compiles
    // a model, so that no request waits for it, and a damaged file is refused there.
    bool make_ready() const;
    Settings settings() const {
        return {best_kernels(), precision_ == "exact" ? Precision::exact : Precision::automatic, tbb_threads()};
    }

    int64_t columns_ = 0;
    std::string precision_ = "auto";
    int64_t format_version_ = 1;
    bool expanded_ = false;

private:
    WeightLayout expected_layout() const;
    std::shared_ptr<const ConstantWeights> weights_of(const std::shared_ptr<const ConstantWeights::Constant>& constant)
        const;

    std::vector<std::shared_ptr<const ConstantWeights>> weights_;
};

// The attributes of an MLP, and where its matrices stand.
struct MlpAttributes {
    int64_t inner = 0;
    std::string activation = "silu";
    bool gated = true;

    void visit(ov::AttributeVisitor& visitor);
    bool known() const {
        return activation == "silu" || activation == "gelu_erf" || activation == "gelu_tanh" || activation == "relu";
    }
    void add_to(WeightLayout& layout, int64_t hidden) const;
    Mlp mlp(const PackedMatrix* matrices, const Norm& norm) const;
    size_t matrix_count() const { return gated ? 3 : 2; }
};

// The attributes of a layer from the end of one attention to the start of the next.
struct LayerAttributes {
    std::vector<int64_t> rows;
    int64_t hidden = 0;
    MlpAttributes mlp;
    double projection_epsilon = 0.0;
    double norm_epsilon = 0.0;
    double mlp_epsilon = 0.0;
    double next_epsilon = 0.0;
    bool bias = false;

    void visit(ov::AttributeVisitor& visitor);
    // Throws where they are not those of a layer.
    void check(const ov::Node& node) const;
    // `columns`: of the first matrix.
    WeightLayout layout(int64_t columns) const;
    Layer layer(const Weights& weights) const;
    const std::vector<std::vector<float>>* biases(const Weights& weights) const {
        return bias ? &weights.vectors : nullptr;
    }
};

// What OpenVINO and SparseOperator ask of every operator, to be defined for each. A macro, since overrides are declared
// in the class itself.
#define SPARSE_OPERATOR_OVERRIDES                                                                      \
    bool has_evaluate() const override { return make_ready(); }                                        \
    bool visit_attributes(ov::AttributeVisitor& visitor) override;                                     \
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override; \
    void validate_and_infer_types() override;                                                          \
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;           \
                                                                                                       \
protected:                                                                                             \
    WeightLayout layout() const override;

class SparseLinear : public ov::op::Op, public SparseOperator {
public:
    OPENVINO_OP("SparseLinear", "shearling");
    SparseLinear() = default;
    explicit SparseLinear(const ov::OutputVector& arguments) : Op(arguments) {}
    SPARSE_OPERATOR_OVERRIDES

private:
    std::vector<int64_t> rows_;
    double norm_epsilon_ = 0.0;
    bool bias_ = false;
    bool residual_ = false;
};

class SparseMLP : public ov::op::Op, public SparseOperator {
public:
    OPENVINO_OP("SparseMLP", "shearling");
    SparseMLP() = default;
    explicit SparseMLP(const ov::OutputVector& arguments) : Op(arguments) {}
    SPARSE_OPERATOR_OVERRIDES

private:
    MlpAttributes mlp_;
    double norm_epsilon_ = 0.0;
    bool residual_ = false;
};

class SparseLayer : public ov::op::Op, public SparseOperator {
public:
    OPENVINO_OP("SparseLayer", "shearling");
    SparseLayer() = default;
    explicit SparseLayer(const ov::OutputVector& arguments) : Op(arguments) {}
    SPARSE_OPERATOR_OVERRIDES

private:
    LayerAttributes layer_;
};

// Layers of one shape, each a SparseLayer with the attention before it: queries, keys and values, side by side, go in
// and those of the next attention come out. Their caches go through as one, see attention.hpp. Together, since between
// two nodes a runtime spends as long as a small layer takes for a third of its products.
class SparseDecoder : public ov::op::Op, public SparseOperator {
public:
    OPENVINO_OP("SparseDecoder", "shearling");
    SparseDecoder() = default;
    explicit SparseDecoder(const ov::OutputVector& arguments) : Op(arguments) {}
    SPARSE_OPERATOR_OVERRIDES

private:
    // Of a layer.
    AttentionShape attention(size_t layer) const;
    bool has_vectors() const { return qkv_bias_ || head_norm_epsilon_ > 0.0; }
    int64_t qkv_columns() const { return (heads_ + 2 * kv_heads_) * head_size_; }
    int64_t next_columns() const;
    CacheType cache_type() const;
    int64_t cache_slot() const;
    // Of one layer.
    int64_t vector_length() const {
        return (qkv_bias_ ? qkv_columns() : 0) + (head_norm_epsilon_ > 0.0 ? 2 * head_size_ : 0);
    }
    size_t input_count() const { return 4 + static_cast<size_t>(layers_) + (has_vectors() ? 1 : 0); }
    ov::PartialShape cache_shape() const;

    LayerAttributes layer_;
    int64_t layers_ = 1;
    int64_t heads_ = 0;
    int64_t kv_heads_ = 0;
    int64_t head_size_ = 0;
    int64_t rotary_size_ = 0;  // 0: whole heads are turned
    bool interleaved_ = false;
    std::string cache_ = "f16";
    double scale_ = 0.0;
    std::vector<int64_t> order_;
    std::vector<int64_t> windows_;
    std::vector<int64_t> angles_;
    bool qkv_bias_ = false;
    double head_norm_epsilon_ = 0.0;
};

// What the attentions of one inference share, in one tensor, since every input of a node costs time: see attention.hpp.
class SparseStep : public ov::op::Op {
public:
    OPENVINO_OP("SparseStep", "shearling");
    SparseStep() = default;
    explicit SparseStep(const ov::OutputVector& arguments) : Op(arguments) {}
    bool has_evaluate() const override { return true; }
    bool visit_attributes(ov::AttributeVisitor& visitor) override;
    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& arguments) const override;
    void validate_and_infer_types() override;
    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

private:
    int64_t format_version_ = 1;
};

// The vocabulary projection. OpenVINO GenAI looks for the last MatMul of a graph, to cut all but the sampled tokens off
// before it, and finds this one. To OpenVINO's own passes it is a MatMul, too: they leave one of such weights alone
// unless a scale follows it or a transposition goes before it, which the export therefore does not let happen.
class SparseHead : public ov::op::v0::MatMul, public SparseOperator {
public:
    OPENVINO_OP("SparseHead", "shearling", ov::op::v0::MatMul);
    SparseHead() = default;
    explicit SparseHead(const ov::OutputVector& arguments) { set_arguments(arguments); }
    SPARSE_OPERATOR_OVERRIDES

private:
    int64_t rows_ = 0;
};

// Rows of the matrix that a SparseHead multiplies by, whose copy it shares then, or of one of its own.
class SparseEmbedding : public ov::op::Op, public SparseOperator {
public:
    OPENVINO_OP("SparseEmbedding", "shearling");
    SparseEmbedding() = default;
    explicit SparseEmbedding(const ov::OutputVector& arguments) : Op(arguments) {}
    SPARSE_OPERATOR_OVERRIDES

private:
    int64_t rows_ = 0;
};

#undef SPARSE_OPERATOR_OVERRIDES

}  // namespace shearling
