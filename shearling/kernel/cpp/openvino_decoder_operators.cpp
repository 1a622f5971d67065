// Whole layers of a decoder, with their attention and its cache.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <set>

#include "openvino_checks.hpp"
#include "openvino_operators.hpp"
#include "openvino_tensors.hpp"

namespace shearling {

WeightLayout SparseDecoder::layout() const { return layer_.layout(columns_); }

bool SparseDecoder::visit_attributes(ov::AttributeVisitor& visitor) {
    layer_.visit(visitor);
    visitor.on_attribute("layers", layers_);
    visitor.on_attribute("heads", heads_);
    visitor.on_attribute("kv_heads", kv_heads_);
    visitor.on_attribute("head_size", head_size_);
    visitor.on_attribute("rotary_size", rotary_size_);
    visitor.on_attribute("interleaved", interleaved_);
    visitor.on_attribute("cache", cache_);
    visitor.on_attribute("scale", scale_);
    visitor.on_attribute("order", order_);
    visitor.on_attribute("windows", windows_);
    visitor.on_attribute("angles", angles_);
    visitor.on_attribute("qkv_bias", qkv_bias_);
    visitor.on_attribute("head_norm_epsilon", head_norm_epsilon_);
    visit_common(visitor);
    return true;
}

std::shared_ptr<ov::Node> SparseDecoder::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto clone = std::make_shared<SparseDecoder>(arguments);
    clone->copy_common(*this);
    clone->layer_ = layer_;
    clone->layers_ = layers_;
    clone->heads_ = heads_;
    clone->kv_heads_ = kv_heads_;
    clone->head_size_ = head_size_;
    clone->rotary_size_ = rotary_size_;
    clone->interleaved_ = interleaved_;
    clone->cache_ = cache_;
    clone->scale_ = scale_;
    clone->order_ = order_;
    clone->windows_ = windows_;
    clone->angles_ = angles_;
    clone->qkv_bias_ = qkv_bias_;
    clone->head_norm_epsilon_ = head_norm_epsilon_;
    clone->validate_and_infer_types();
    return clone;
}

AttentionShape SparseDecoder::attention(size_t layer) const {
    AttentionShape shape{};
    shape.heads = static_cast<size_t>(heads_);
    shape.kv_heads = static_cast<size_t>(kv_heads_);
    shape.width = static_cast<size_t>(head_size_);
    shape.rotated = static_cast<size_t>(rotary_size_ == 0 ? head_size_ : rotary_size_);
    shape.interleaved = interleaved_;
    shape.cache = cache_type();
    shape.scale = static_cast<float>(scale_);
    const int64_t angles = angles_.empty() ? 0 : angles_[layer];
    shape.window = windows_.empty() ? 0 : static_cast<size_t>(windows_[layer]);
    shape.turned = angles >= 0;
    shape.angles = shape.turned ? static_cast<size_t>(angles) : 0;
    const size_t widths[3] = {
        shape.heads * shape.width, shape.kv_heads * shape.width, shape.kv_heads * shape.width};
    size_t* const firsts[3] = {&shape.first_query, &shape.first_key, &shape.first_value};
    size_t column = 0;
    for (const int64_t part : order_) {
        *firsts[part] = column;
        column += widths[part];
    }
    return shape;
}

CacheType SparseDecoder::cache_type() const {
    const auto* const place = std::find(std::begin(cache_type_names), std::end(cache_type_names), cache_);
    return static_cast<CacheType>(place - std::begin(cache_type_names));
}

int64_t SparseDecoder::cache_slot() const {
    return static_cast<int64_t>(slot_bytes(cache_type(), static_cast<size_t>(head_size_)));
}

int64_t SparseDecoder::next_columns() const {
    return std::accumulate(layer_.rows.begin(), layer_.rows.end(), int64_t{0});
}

// [batch, heads of keys and of values of all layers, slots, bytes]: as many slots as SparseStep's output has rows.
ov::PartialShape SparseDecoder::cache_shape() const {
    const ov::PartialShape &x = get_input_partial_shape(0), &step = get_input_partial_shape(2);
    return {
        x.rank().is_static() ? x[0] : ov::Dimension(), layers_ * 2 * kv_heads_,
        step.rank().is_static() ? step[0] : ov::Dimension(), cache_slot()};
}

void SparseDecoder::validate_and_infer_types() {
    layer_.check(*this);
    constexpr int64_t most_heads = 1 << 16, most_head_size = 1 << 12;
    NODE_VALIDATION_CHECK(
        this,
        kv_heads_ > 0 && heads_ > 0 && heads_ <= most_heads && kv_heads_ <= heads_ && heads_ % kv_heads_ == 0 &&
            head_size_ > 0 && head_size_ <= most_head_size && head_size_ % 16 == 0 && heads_ * head_size_ == columns_,
        heads_, " heads of ", head_size_, " in ", kv_heads_, " groups do not make ", columns_, " columns");
    NODE_VALIDATION_CHECK(
        this, rotary_size_ >= 0 && rotary_size_ <= head_size_ && rotary_size_ % 2 == 0, rotary_size_, " numbers of ",
        head_size_, " cannot be turned");
    NODE_VALIDATION_CHECK(
        this, static_cast<size_t>(cache_type()) < cache_types, "a cache in ", cache_, " is not known");
    NODE_VALIDATION_CHECK(this, std::isfinite(scale_), "scale is ", scale_);
    NODE_VALIDATION_CHECK(
        this, order_.size() == 3 && std::set<int64_t>(order_.begin(), order_.end()) == std::set<int64_t>({0, 1, 2}),
        "the order of queries, keys and values is not one of 0, 1 and 2");
    check_epsilon(*this, "head_norm_epsilon", head_norm_epsilon_);
    constexpr int64_t most_layers = 1 << 16;
    NODE_VALIDATION_CHECK(
        this, layers_ > 0 && layers_ <= most_layers && (layers_ == 1 || next_columns() == qkv_columns()), layers_,
        " layers of ", qkv_columns(), " columns leave ", next_columns(), " to the next");
    constexpr auto most_sets = static_cast<int64_t>(most_angle_sets);
    const auto for_each_layer = [&](const std::vector<int64_t>& numbers, int64_t least, int64_t most) {
        const bool fit = std::all_of(
            numbers.begin(), numbers.end(), [&](int64_t number) { return number >= least && number <= most; });
        return numbers.empty() || (fit && numbers.size() == static_cast<size_t>(layers_));
    };
    constexpr int64_t most_window = int64_t{1} << 40;
    NODE_VALIDATION_CHECK(
        this, for_each_layer(windows_, 0, most_window) && for_each_layer(angles_, -1, most_sets - 1),
        "not every layer has a window and angles");
    validate_common(*this, input_count(), 4, static_cast<size_t>(layers_));
    check_activation(*this, 0, qkv_columns());
    check_activation(*this, 1, layer_.hidden);
    const auto expect = [&](size_t input, ov::element::Type type, const ov::PartialShape& shape) {
        const ov::element::Type found = get_input_element_type(input);
        NODE_VALIDATION_CHECK(
            this, (found == type || found.is_dynamic()) && get_input_partial_shape(input).compatible(shape), "input ",
            input, " is ", found, " ", get_input_partial_shape(input), ", expected ", type, " ", shape);
    };
    expect(2, ov::element::u8, {-1, -1});
    expect(3, ov::element::u8, {-1, layers_ * 2 * kv_heads_, -1, cache_slot()});
    if (has_vectors()) {
        const size_t input = input_count() - 1;
        check_activation(*this, input, layers_ * vector_length());
        const ov::PartialShape& vectors = get_input_partial_shape(input);
        NODE_VALIDATION_CHECK(this, vectors.rank().compatible(1), "vectors are ", vectors, ", not of rank 1");
    }
    ov::PartialShape shape = get_input_partial_shape(0);
    NODE_VALIDATION_CHECK(this, shape.rank().compatible(3), "activations are ", shape, ", not of rank 3");
    const int64_t next = next_columns();
    shape = shape.rank().is_static() ? shape : ov::PartialShape::dynamic(3);
    set_output_size(next == 0 ? 2 : 3);
    shape[2] = layer_.hidden;
    set_output_type(0, get_input_element_type(0), shape);
    set_output_type(1, ov::element::u8, cache_shape());
    if (next != 0) {
        shape[2] = next;
        set_output_type(2, get_input_element_type(0), shape);
    }
}

bool SparseDecoder::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    const int64_t next = next_columns();
    const auto layers = static_cast<size_t>(layers_);
    require_counts(inputs, input_count(), outputs, next == 0 ? 2 : 3);
    AttentionShape attention = this->attention(0);
    std::unique_ptr<Floats> vectors;  // in f32 even where OpenVINO computes in bf16
    if (has_vectors()) {
        vectors = std::make_unique<Floats>(inputs.back(), layers_ * vector_length());
        OPENVINO_ASSERT(vectors->rows.count == 1, "vectors are ", inputs.back().get_shape(), ", not one row");
    }
    const Floats qkv(inputs[0], static_cast<int64_t>(attention.columns())), residual(inputs[1], layer_.hidden);
    const size_t rows = qkv.rows.count;
    OPENVINO_ASSERT(residual.rows.count == rows, "a residual of shape ", inputs[1].get_shape());
    OPENVINO_ASSERT(inputs[2].get_element_type() == ov::element::u8, "the step is ", inputs[2].get_element_type());
    StepView step{};
    const char* fault = read_step(inputs[2].data<const uint8_t>(), inputs[2].get_byte_size(), attention.rotated, step);
    OPENVINO_ASSERT(fault == nullptr, "the step of a decoder does not fit: ", fault);
    OPENVINO_ASSERT(
        angles_.empty() || static_cast<int64_t>(step.sets) > *std::max_element(angles_.begin(), angles_.end()),
        "the step of a decoder has ", step.sets, " sets of angles");
    const size_t layer_heads = 2 * attention.kv_heads;
    const ov::Shape past = inputs[3].get_shape(),
                    cache{step.batch, layers * layer_heads, slots_for(step.positions), attention.slot_bytes()};
    OPENVINO_ASSERT(
        inputs[3].get_element_type() == ov::element::u8 && past.size() == 4 && past[1] == cache[1] &&
            past[3] == cache[3],
        "a cache of ", inputs[3].get_element_type(), " ", past);
    const bool empty = inputs[3].get_size() == 0;
    CacheView view{
        empty ? nullptr : inputs[3].data<const uint8_t>(), empty ? 0 : past[2], empty ? 0 : past[0], nullptr,
        cache[2], cache[1], cache[3]};
    fault = attention_fault(attention, step, qkv.rows, view);
    OPENVINO_ASSERT(fault == nullptr, "the attention of a decoder does not fit: ", fault);
    outputs[1].set_shape(cache);
    view.next = outputs[1].data<uint8_t>();
    const ov::Shape shape = inputs[0].get_shape();
    const Results y(outputs, 0, shape, {layer_.hidden}, nullptr);
    std::unique_ptr<FloatTarget> z;
    if (next != 0) {
        z = std::make_unique<FloatTarget>(outputs[2], shape, next);
    }
    if (step.batch == 0) {
        return true;
    }
    claim(step, view, layers, layer_heads);
    // What goes from one layer to the next: even ones write it to one place, odd ones to the other.
    const auto hidden = static_cast<size_t>(layer_.hidden), columns = static_cast<size_t>(next);
    Buffer between(layers == 1 ? 0 : 2 * rows * (hidden + columns) * sizeof(float));
    const Settings settings = this->settings();
    Rows x = qkv.rows, added = residual.rows;
    for (size_t index = 0; index < layers; ++index) {
        const auto weights = checked_weights(inputs[4 + index], index);
        attention = this->attention(index);
        if (vectors != nullptr) {
            const float* data = vectors->rows.data + index * static_cast<size_t>(vector_length());
            attention.bias = qkv_bias_ ? data : nullptr;
            data += qkv_bias_ ? qkv_columns() : 0;
            attention.query_gamma = head_norm_epsilon_ > 0.0 ? data : nullptr;
            attention.key_gamma = head_norm_epsilon_ > 0.0 ? data + head_size_ : nullptr;
            attention.epsilon = static_cast<float>(head_norm_epsilon_);
        }
        const bool last = index + 1 == layers;
        float* const place = between.floats() + (last ? 0 : index % 2 * rows * (hidden + columns));
        float* const sum = last ? y.outputs[0].data : place;
        float* const following = last ? (z == nullptr ? nullptr : z->data) : place + rows * hidden;
        const auto leaving = joined_outputs(following, layer_.rows, layer_.biases(*weights));
        const AttentionSteps steps(attention, step, x, view, settings);
        multiply(steps, layer_.layer(*weights), added, sum, leaving.data(), settings);
        x = {following, rows, columns};
        added = {sum, rows, hidden};
        view.past += view.past == nullptr ? 0 : layer_heads * view.past_slots * attention.slot_bytes();
        view.next += layer_heads * view.next_slots * attention.slot_bytes();
    }
    return true;
}

bool SparseStep::visit_attributes(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("format_version", format_version_);
    return true;
}

std::shared_ptr<ov::Node> SparseStep::clone_with_new_inputs(const ov::OutputVector& arguments) const {
    auto clone = std::make_shared<SparseStep>(arguments);
    clone->format_version_ = format_version_;
    clone->validate_and_infer_types();
    return clone;
}

namespace {

// Cosines and sines of every set, mask and sources.
bool is_step(size_t inputs) { return inputs >= 4 && inputs % 2 == 0 && inputs / 2 - 1 <= most_angle_sets; }

// Of these; throws where they do not belong together.
StepView step_of(const std::vector<ov::Shape>& shapes) {
    const ov::Shape &angles = shapes[0], &mask = shapes[shapes.size() - 2], &sources = shapes.back();
    const bool alike =
        std::all_of(shapes.begin(), shapes.end() - 2, [&](const ov::Shape& one) { return one == angles; });
    OPENVINO_ASSERT(
        angles.size() == 3 && alike && mask.size() == 2 && sources.size() == 1 && sources[0] == mask[0] &&
            (angles[0] == 1 || angles[0] == mask[0]) && angles[1] <= mask[1] && angles[2] > 0,
        "angles of ", angles, " and ", shapes[1], ", a mask of ", mask, " and ", sources,
        " sequences are not one step");
    constexpr size_t most = size_t{1} << 31;
    OPENVINO_ASSERT(mask[0] < most && mask[1] < most && angles[2] < most, "a step of ", mask, " is too large");
    StepView step{};
    step.batch = mask[0];
    step.rows = angles[1];
    step.positions = mask[1];
    step.tables = angles[0];
    step.sets = shapes.size() / 2 - 1;
    return step;
}

// Rows as the cache has slots, so that who sees the shape of a step knows that of the cache.
ov::Shape shape_of(const StepView& step, size_t width) {
    static const float something = 0.0f;
    static const int32_t someone = 0;
    StepView all = step;
    all.mask = &something;
    all.sources = &someone;
    const size_t slots = slots_for(step.positions);
    return {slots, (step_words(all, width) + slots - 1) / slots * sizeof(float)};
}

template <class Source, class Target>
bool copy_numbers(const ov::Tensor& tensor, Target* target, Target usual, bool counts) {
    const Source* source = tensor.data<const Source>();
    bool is_usual = true;
    const size_t size = tensor.get_size();
    for (size_t index = 0; index < size; ++index) {
        target[index] = static_cast<Target>(source[index]);
        is_usual = is_usual && target[index] == (counts ? static_cast<Target>(index) : usual);
    }
    return is_usual;
}

// Copies integers; whether all are `usual`, or 0, 1, 2 and so on where that `counts`.
template <class Target>
bool copy_integers(const ov::Tensor& tensor, Target* target, Target usual, bool counts) {
    const ov::element::Type type = tensor.get_element_type();
    OPENVINO_ASSERT(type == ov::element::i64 || type == ov::element::i32, "a mask or order of ", type);
    return type == ov::element::i64 ? copy_numbers<int64_t>(tensor, target, usual, counts)
                                    : copy_numbers<int32_t>(tensor, target, usual, counts);
}

}  // namespace

void SparseStep::validate_and_infer_types() {
    NODE_VALIDATION_CHECK(
        this, format_version_ == 1, "format_version ", format_version_, " is not 1: made by another version");
    const size_t inputs = get_input_size();
    NODE_VALIDATION_CHECK(
        this, is_step(inputs), "has ", inputs, " inputs, not cosines and sines of some sets, a mask and sources");
    ov::PartialShape shape = ov::PartialShape::dynamic(2);
    std::vector<ov::Shape> shapes;
    for (size_t input = 0; input < inputs && get_input_partial_shape(input).is_static(); ++input) {
        shapes.push_back(get_input_shape(input));
    }
    if (shapes.size() == inputs) {
        shape = shape_of(step_of(shapes), shapes[0][2]);
    }
    // Bytes, which OpenVINO leaves as they are where it computes in bf16.
    set_output_type(0, ov::element::u8, shape);
}

bool SparseStep::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
    require_counts(inputs, is_step(inputs.size()) ? inputs.size() : 0, outputs, 1);
    std::vector<ov::Shape> shapes;
    for (const ov::Tensor& input : inputs) {
        shapes.push_back(input.get_shape());
    }
    StepView step = step_of(shapes);
    const size_t width = shapes[0][2];
    std::vector<std::unique_ptr<Floats>> angles;
    std::vector<const float*> tables;
    for (size_t table = 0; table < 2 * step.sets; ++table) {
        angles.push_back(std::make_unique<Floats>(inputs[table], static_cast<int64_t>(width)));
        tables.push_back(angles.back()->rows.data);
    }
    const ov::Tensor &mask = inputs[2 * step.sets], &order = inputs.back();
    Buffer numbers((step.batch * step.positions + step.batch) * sizeof(float));
    auto* const sources = reinterpret_cast<int32_t*>(numbers.floats() + step.batch * step.positions);
    step.mask = copy_integers(mask, numbers.floats(), 1.0f, false) ? nullptr : numbers.floats();
    step.sources = copy_integers(order, sources, 0, true) ? nullptr : sources;
    outputs[0].set_shape(shape_of(step, width));
    write_step(step, width, tables.data(), outputs[0].data<uint8_t>());
    return true;
}

}  // namespace shearling
