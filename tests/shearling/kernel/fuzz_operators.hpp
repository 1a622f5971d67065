// Nodes of all operators for OpenVINO: sound ones, what a file could say instead, and how a runtime computes with them.
#pragma once

#include <cmath>
#include <openvino/core/attribute_visitor.hpp>
#include <openvino/op/concat.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/parameter.hpp>
#include <stdexcept>
#include <string>

#include "fuzz_inputs.hpp"
#include "openvino_operators.hpp"

namespace fuzz {

enum class Kind { linear, mlp, layer, head, embedding };
enum class Source { constant, parameter, computed, other_type, matrix };

struct Attributes {
    int64_t columns = 0, hidden = 0, inner = 0, row_count = 0, format_version = 1;
    std::vector<int64_t> rows;
    double projection_epsilon = 0.0, norm_epsilon = 0.0, mlp_epsilon = 0.0, next_epsilon = 0.0;
    bool gated = true, bias = false, residual = false, expanded = false;
    std::string activation = "silu", precision = "auto";
};

struct Input {
    ov::element::Type declared_type = ov::element::f32, type = ov::element::f32;
    ov::PartialShape declared;
    ov::Shape shape;
};

struct Node {
    Kind kind = Kind::linear;
    Attributes attributes;
    Input x, residual;
    Bytes weights;
    Source source = Source::constant;
    bool has_residual = false, strange_tokens = false;
    // What happens to a node that was made: its mapped file changes, its attributes change, it is computed with
    // arguments of other sizes or of another number.
    bool file_changes = false, other_arguments = false;
    std::shared_ptr<Attributes> later;
};

class Setter : public ov::AttributeVisitor {
public:
    explicit Setter(const Attributes& from) : from_(from) {}
    void on_adapter(const std::string&, ov::ValueAccessor<void>&) override {}
    void on_adapter(const std::string& name, ov::ValueAccessor<bool>& value) override {
        value.set(
            name == "gated"      ? from_.gated
            : name == "bias"     ? from_.bias
            : name == "expanded" ? from_.expanded
                                 : from_.residual);
    }
    void on_adapter(const std::string& name, ov::ValueAccessor<double>& value) override {
        value.set(
            name == "norm_epsilon"         ? from_.norm_epsilon
            : name == "projection_epsilon" ? from_.projection_epsilon
            : name == "mlp_epsilon"        ? from_.mlp_epsilon
                                           : from_.next_epsilon);
    }
    void on_adapter(const std::string& name, ov::ValueAccessor<int64_t>& value) override {
        value.set(
            name == "columns"  ? from_.columns
            : name == "hidden" ? from_.hidden
            : name == "inner"  ? from_.inner
            : name == "rows"   ? from_.row_count
                               : from_.format_version);
    }
    void on_adapter(const std::string&, ov::ValueAccessor<std::vector<int64_t>>& value) override {
        value.set(from_.rows);
    }
    void on_adapter(const std::string& name, ov::ValueAccessor<std::string>& value) override {
        value.set(name == "activation" ? from_.activation : from_.precision);
    }

private:
    const Attributes& from_;
};

inline void add(Random& random, Bytes& bundle, int64_t rows, int64_t columns) {
    const Bytes packed = packed_matrix(random, static_cast<size_t>(rows), static_cast<size_t>(columns));
    bundle.insert(bundle.end(), packed.begin(), packed.end());
}

inline void add_vector(Bytes& bundle, int64_t length) {
    const std::vector<float> ones(static_cast<size_t>(length), 1.0f);
    const auto* bytes = reinterpret_cast<const uint8_t*>(ones.data());
    bundle.insert(bundle.end(), bytes, bytes + ones.size() * sizeof(float));
    bundle.resize((bundle.size() + 63) / 64 * 64);
}

// Beyond where kernels take two panels at a time, and now and then beyond what goes through a layer at once.
inline size_t many_rows(Random& random) { return 64 + random.below(random.once_in(4) ? 540 : 200); }

inline Input sound_input(Random& random, int64_t width, bool many) {
    Input input;
    input.type = input.declared_type = random.one_of({ov::element::f32, ov::element::bf16, ov::element::f16});
    input.shape = many                ? ov::Shape{1, many_rows(random)}
                  : random.once_in(6) ? ov::Shape{}
                                      : ov::Shape{1 + random.below(2), random.below(6)};
    input.shape.push_back(static_cast<size_t>(width));
    input.declared = random.once_in(3) ? ov::PartialShape::dynamic() : ov::PartialShape(input.shape);
    if (input.declared.rank().is_static() && random.once_in(2)) {
        for (auto& size : input.declared) {
            size = ov::Dimension::dynamic();
        }
    }
    return input;
}

inline Node sound_node(Random& random) {
    Node node;
    node.kind = random.one_of({Kind::linear, Kind::mlp, Kind::layer, Kind::head, Kind::embedding});
    Attributes& a = node.attributes;
    // With panels enough that threads take several of them at a time.
    const bool many = random.once_in(32);
    const auto size = [&](size_t most) { return static_cast<int64_t>(1 + random.below(many ? 5 * most : most)); };
    a.columns = size(40);
    a.hidden = size(24);
    a.inner = size(24);
    a.row_count = size(40);
    a.precision = random.one_of<const char*>({"auto", "auto", "exact"});
    a.activation = random.one_of<const char*>({"silu", "gelu_erf", "gelu_tanh", "relu"});
    a.gated = random.once_in(2);
    a.bias = random.once_in(3);
    a.residual = random.once_in(3);
    a.expanded = random.once_in(3);
    const double epsilon = random.one_of({0.0, 1e-5, 1.0});
    const size_t products = node.kind == Kind::layer ? random.below(3) : a.residual ? 1 : 1 + random.below(3);
    for (size_t index = 0; index < products; ++index) {
        a.rows.push_back(size(24));
    }
    const int64_t width = node.kind == Kind::layer ? a.hidden : a.columns;
    if (node.kind == Kind::linear) {
        a.norm_epsilon = epsilon;
    } else if (node.kind == Kind::layer) {
        add(random, node.weights, a.hidden, a.columns);
    } else if (node.kind != Kind::mlp) {
        add(random, node.weights, a.row_count, a.columns);
    }
    if (node.kind == Kind::mlp || node.kind == Kind::layer) {
        a.norm_epsilon = epsilon;
        for (int index = 0; index < (a.gated ? 2 : 1); ++index) {
            add(random, node.weights, a.inner, width);
        }
        add(random, node.weights, width, a.inner);
    }
    if (node.kind == Kind::linear || node.kind == Kind::layer) {
        if (node.kind == Kind::layer) {
            for (double* const of : {&a.projection_epsilon, &a.mlp_epsilon, &a.next_epsilon}) {
                *of = random.one_of({0.0, 1e-5});
            }
        }
        for (const int64_t rows : a.rows) {
            add(random, node.weights, rows, width);
        }
    }
    for (const double one : {a.projection_epsilon, a.norm_epsilon, a.mlp_epsilon, a.next_epsilon}) {
        if (one > 0.0) {
            add_vector(node.weights, width);
        }
    }
    for (size_t index = 0; a.bias && index < a.rows.size() && (node.kind == Kind::linear || node.kind == Kind::layer);
         ++index) {
        add_vector(node.weights, a.rows[index]);
    }
    node.x = sound_input(random, a.columns, many);
    node.has_residual = node.kind == Kind::layer || (node.kind == Kind::linear && a.residual);
    if (node.has_residual) {
        node.residual = node.x;
        node.residual.shape.back() = static_cast<size_t>(node.kind == Kind::layer ? a.hidden : a.rows[0]);
        node.residual.declared = ov::PartialShape::dynamic();
    }
    if (node.kind == Kind::embedding) {
        node.x.shape.pop_back();
        node.x.type = node.x.declared_type = random.one_of({ov::element::i32, ov::element::i64});
        node.x.declared = random.once_in(2) ? ov::PartialShape::dynamic() : ov::PartialShape(node.x.shape);
    }
    return node;
}

inline int64_t trouble(Random& random) {
    return random.one_of<int64_t>(
        {0, -1, 1, 2, 15, 16, 17, 1 << 24, (1 << 24) + 1, INT64_C(1) << 31, INT64_C(1) << 32, INT64_C(1) << 62,
         INT64_MAX, INT64_MIN});
}

inline void nudge(int64_t& number, int64_t by) {
    number = static_cast<int64_t>(static_cast<uint64_t>(number) + static_cast<uint64_t>(by));
}

inline void damage(Random& random, Attributes& a) {
    int64_t* const integers[] = {&a.columns, &a.hidden, &a.inner, &a.row_count, &a.format_version};
    bool* const flags[] = {&a.gated, &a.bias, &a.residual, &a.expanded};
    const double epsilon = random.one_of<double>({NAN, -1e-5, 1e-5, 1e300, INFINITY, 0.0, 5e-324});
    switch (random.below(8)) {
        case 0: *integers[random.below(5)] = trouble(random); break;
        case 1: nudge(*integers[random.below(4)], random.once_in(2) ? 1 : -1); break;
        case 2: *flags[random.below(4)] ^= true; break;
        case 3: a.norm_epsilon = epsilon; break;
        case 4:
            *random.one_of<double*>({&a.projection_epsilon, &a.mlp_epsilon, &a.next_epsilon}) = epsilon;
            break;
        case 5:
            (random.once_in(2) ? a.activation : a.precision) = random.one_of<const char*>({"", "silu", "exact"});
            break;
        case 6: a.rows.resize(random.one_of<size_t>({0, 1, 2, 3, 4, 100}), trouble(random)); break;
        default:
            if (!a.rows.empty()) {
                nudge(a.rows[random.below(a.rows.size())], random.one_of<int64_t>({-1, 1, 16, -1000}));
            }
    }
}

inline void damage(Random& random, Input& input) {
    switch (random.below(7)) {
        case 0: input.type = random.one_of(
            {ov::element::f32, ov::element::bf16, ov::element::f16, ov::element::f64, ov::element::u8, ov::element::i32,
             ov::element::i64});
        break;
        case 1: input.declared_type = ov::element::dynamic; break;
        case 2: input.shape = {}; break;
        case 3: input.declared = ov::PartialShape::dynamic(); break;
        case 4: input.shape.insert(input.shape.begin(), random.below(3)); break;
        case 5: input.declared = ov::PartialShape(input.shape); break;
        default:
            if (!input.shape.empty()) {
                input.shape.back() = random.one_of<size_t>({0, 1, input.shape.back() + 1, 2 * input.shape.back()});
            }
    }
}

inline void damage(Random& random, Node& node) {
    switch (random.below(10)) {
        case 0:
        case 1: return damage(random, node.weights.data(), node.weights.size());
        case 2:
        case 3: return damage(random, node.attributes);
        case 4: return damage(random, node.x);
        case 5: return damage(random, node.residual);
        case 6:
            node.source = random.one_of({Source::parameter, Source::computed, Source::other_type, Source::matrix});
            return;
        case 7:
            node.later = std::make_shared<Attributes>(node.attributes);
            return damage(random, *node.later);
        case 8: node.file_changes = true; return;
        default:
            if (node.kind == Kind::embedding) {
                node.strange_tokens = true;
            } else {
                node.other_arguments = true;
            }
    }
}

// Memory of exactly a tensor's size.
class ExactTensor {
public:
    ExactTensor(ov::element::Type type, const ov::Shape& shape)
        : memory_(new uint8_t[std::max<size_t>(1, ov::shape_size(shape) * type.size())]()),
          tensor_(type, shape, memory_.get()) {}
    ov::Tensor& tensor() { return tensor_; }

private:
    std::unique_ptr<uint8_t[]> memory_;
    ov::Tensor tensor_;
};

template <class Number>
void fill(ov::Tensor& tensor, const std::vector<float>& values) {
    std::copy(values.begin(), values.end(), tensor.data<Number>());
}

inline void fill(Random& random, const Node& node, ov::Tensor& tensor) {
    const size_t size = tensor.get_size();
    const ov::element::Type type = tensor.get_element_type();
    if (type == ov::element::f32) {
        fill<float>(tensor, activations(random, size));
    } else if (type == ov::element::f16) {
        fill<ov::float16>(tensor, activations(random, size));
    } else if (type == ov::element::bf16) {
        fill<ov::bfloat16>(tensor, activations(random, size));
    }
    for (size_t index = 0; index < size && (type == ov::element::i32 || type == ov::element::i64); ++index) {
        const int64_t known = static_cast<int64_t>(random.below(static_cast<size_t>(std::max<int64_t>(
            1, std::min<int64_t>(node.attributes.row_count, 40)))));
        const int64_t token = node.strange_tokens ? trouble(random) : known;
        if (type == ov::element::i32) {
            tensor.data<int32_t>()[index] = static_cast<int32_t>(token);
        } else {
            tensor.data<int64_t>()[index] = token;
        }
    }
}

inline std::shared_ptr<ov::Node> new_node(Kind kind) {
    switch (kind) {
        case Kind::linear: return std::make_shared<shearling::SparseLinear>();
        case Kind::mlp: return std::make_shared<shearling::SparseMLP>();
        case Kind::layer: return std::make_shared<shearling::SparseLayer>();
        case Kind::head: return std::make_shared<shearling::SparseHead>();
        default: return std::make_shared<shearling::SparseEmbedding>();
    }
}

inline ov::Output<ov::Node> weights_of(const Node& node, const ov::Tensor& tensor) {
    using ov::op::v0::Constant;
    const auto constant = std::make_shared<Constant>(tensor);
    switch (node.source) {
        case Source::constant: return constant;
        case Source::parameter: return std::make_shared<ov::op::v0::Parameter>(ov::element::u8, tensor.get_shape());
        case Source::computed: return std::make_shared<ov::op::v0::Concat>(ov::OutputVector{constant}, 0);
        case Source::other_type:
            return std::make_shared<Constant>(ov::Tensor(ov::element::i8, tensor.get_shape(), tensor.data()));
        default: return std::make_shared<Constant>(ov::Tensor(ov::element::u8, {1, tensor.get_size()}, tensor.data()));
    }
}

inline void require_kept(bool kept, const char* what) {
    if (!kept) {
        std::fprintf(stderr, "%s\n", what);
        std::abort();
    }
}

// The results of a node, each with its shape: as a runtime that has no idea of their sizes asks for them.
inline std::vector<std::pair<ov::Shape, Bytes>> results_of(
    const ov::Node& node, const ov::TensorVector& inputs, ov::element::Type type) {
    ov::TensorVector outputs;
    for (size_t index = 0; index < node.get_output_size(); ++index) {
        outputs.emplace_back(type, ov::Shape{0});
    }
    require_kept(node.evaluate(outputs, inputs), "an evaluation is not supported");
    std::vector<std::pair<ov::Shape, Bytes>> results;
    for (ov::Tensor& output : outputs) {
        const auto* data = static_cast<const uint8_t*>(output.data());
        results.emplace_back(output.get_shape(), Bytes(data, data + output.get_byte_size()));
    }
    return results;
}

// Makes the node, clones it as a runtime does, and computes with both. Throws where that is refused.
inline void evaluate(Random& random, const Node& node) {
    ExactCopy file(node.weights.data(), node.weights.size());
    const ov::Tensor weights(ov::element::u8, {node.weights.size()}, file.data());
    const auto parameter = [](const Input& input) {
        return std::make_shared<ov::op::v0::Parameter>(input.declared_type, input.declared);
    };
    ov::OutputVector arguments{parameter(node.x), weights_of(node, weights)};
    if (node.has_residual) {
        arguments.insert(arguments.begin() + (node.kind == Kind::layer ? 1 : 2), parameter(node.residual));
    }
    const auto made = new_node(node.kind);
    made->set_arguments(arguments);
    Setter attributes(node.attributes);
    made->visit_attributes(attributes);
    made->constructor_validate_and_infer_types();
    if (node.later != nullptr) {
        Setter later(*node.later);
        made->visit_attributes(later);
    }
    if (node.file_changes) {
        damage(random, file.data(), node.weights.size());
    }
    ExactTensor x(node.x.type, node.x.shape), residual(node.residual.type, node.residual.shape);
    fill(random, node, x.tensor());
    fill(random, node, residual.tensor());
    ov::TensorVector inputs{x.tensor(), weights};
    if (node.has_residual) {
        inputs.insert(inputs.begin() + (node.kind == Kind::layer ? 1 : 2), residual.tensor());
    }
    ExactTensor other(ov::element::u8, {node.weights.size() + 64});
    if (node.other_arguments) {
        random.once_in(2) ? inputs.pop_back() : static_cast<void>(inputs[1] = other.tensor());
    }
    const ov::element::Type type = node.kind == Kind::embedding ? ov::element::f32 : node.x.type;
    const auto first = results_of(*made, inputs, type);
    // What was validated is what is read, whatever has become of the file.
    std::fill_n(file.data(), node.weights.size(), uint8_t{0xA5});
    require_kept(results_of(*made, inputs, type) == first, "a node reads its file again");
    arguments[node.kind == Kind::layer ? 2 : 1] =
        arguments[node.kind == Kind::layer ? 2 : 1].get_node_shared_ptr()->clone_with_new_inputs({});
    const auto clone = made->clone_with_new_inputs(arguments);
    require_kept(results_of(*clone, inputs, type) == first, "a clone computes something else");
    for (size_t index = 0; index < first.size(); ++index) {
        const ov::PartialShape& promised = clone->get_output_partial_shape(index);
        require_kept(promised.compatible(ov::PartialShape(first[index].first)) || node.later != nullptr ||
                     !node.x.declared.compatible(ov::PartialShape(node.x.shape)), "a result of another shape");
    }
}

}  // namespace fuzz
