// Decoder layers with their cache, step after step as a runtime calls them, and what a caller could do to them.
#pragma once

#include <atomic>
#include <memory>
#include <new>
#include <openvino/op/constant.hpp>
#include <openvino/op/parameter.hpp>
#include <string>
#include <vector>

#include "fuzz_inputs.hpp"
#include "fuzz_operators.hpp"
#include "openvino_operators.hpp"

namespace fuzz {

// Of scratch memory: the last of so many is refused; at 0 none is.
inline std::atomic<int> allocations_left{0};

struct ShortMemory {
    explicit ShortMemory(int allocations) { allocations_left = allocations; }
    ~ShortMemory() { allocations_left = 0; }
};

struct Decoder {
    int64_t layers = 1, heads = 1, kv_heads = 1, head_size = 16, hidden = 1, inner = 1, next = 0, columns = 16;
    int64_t rotary_size = 0;
    double scale = 0.25;
    std::string cache = "f16";
    std::vector<int64_t> order{0, 1, 2}, windows, angles;  // the last two of every layer, or none
    size_t sets = 1;
    bool bias = false, norm = false, sandwich = false, interleaved = false, expanded = false;
    size_t batch = 1;
    std::vector<Bytes> weights;  // of every layer
    int64_t qkv_columns() const { return (heads + 2 * kv_heads) * head_size; }
    size_t rotated() const { return static_cast<size_t>(rotary_size == 0 ? head_size : rotary_size); }
    size_t slot_bytes() const {
        const auto* const first = std::begin(shearling::cache_type_names);
        const auto* const place = std::find(first, std::end(shearling::cache_type_names), cache);
        return shearling::slot_bytes(static_cast<shearling::CacheType>(place - first), static_cast<size_t>(head_size));
    }
    size_t cache_heads() const { return static_cast<size_t>(layers * 2 * kv_heads); }
    size_t vector_length() const {
        const int64_t of_a_layer = (bias ? qkv_columns() : 0) + (norm ? 2 * head_size : 0);
        return static_cast<size_t>(layers * of_a_layer);
    }
};

class DecoderSetter : public ov::AttributeVisitor {
public:
    explicit DecoderSetter(const Decoder& from) : from_(from) {}
    void on_adapter(const std::string&, ov::ValueAccessor<void>&) override {}
    void on_adapter(const std::string& name, ov::ValueAccessor<bool>& value) override { 
        value.set(
            name == "gated" || (name == "qkv_bias" && from_.bias) || (name == "interleaved" && from_.interleaved) ||
            (name == "expanded" && from_.expanded));
    }
    void on_adapter(const std::string& name, ov::ValueAccessor<double>& value) override {
        const bool normed = (name == "head_norm_epsilon" && from_.norm) ||
                            ((name == "projection_epsilon" || name == "mlp_epsilon") && from_.sandwich);
        value.set(name == "scale" ? from_.scale : normed ? 1e-5 : 0.0);
    }
    void on_adapter(const std::string& name, ov::ValueAccessor<int64_t>& value) override {
        value.set(
            name == "columns"     ? from_.columns
            : name == "hidden"    ? from_.hidden
            : name == "inner"     ? from_.inner
            : name == "layers"    ? from_.layers
            : name == "heads"     ? from_.heads
            : name == "kv_heads"  ? from_.kv_heads
            : name == "head_size"   ? from_.head_size
            : name == "rotary_size" ? from_.rotary_size
                                    : 1);
    }
    void on_adapter(const std::string& name, ov::ValueAccessor<std::vector<int64_t>>& value) override {
        value.set(
            name == "order"     ? from_.order
            : name == "windows" ? from_.windows
            : name == "angles"  ? from_.angles
            : from_.next == 0   ? std::vector<int64_t>{}
                                : std::vector{from_.next});
    }
    void on_adapter(const std::string& name, ov::ValueAccessor<std::string>& value) override {
        value.set(name == "activation" ? "silu" : name == "cache" ? from_.cache : "auto");
    }

private:
    const Decoder& from_;
};

inline Decoder sound_decoder(Random& random) {
    Decoder decoder;
    decoder.kv_heads = static_cast<int64_t>(1 + random.below(2));
    decoder.heads = decoder.kv_heads * static_cast<int64_t>(1 + random.below(3));
    decoder.head_size = random.one_of<int64_t>({16, 32, 64, 80});
    decoder.columns = decoder.heads * decoder.head_size;
    decoder.hidden = static_cast<int64_t>(1 + random.below(20));
    decoder.inner = static_cast<int64_t>(1 + random.below(20));
    decoder.layers = static_cast<int64_t>(1 + random.below(3));
    decoder.next = decoder.layers == 1 ? static_cast<int64_t>(random.below(3) * 5) : decoder.qkv_columns();
    decoder.order = random.one_of<std::vector<int64_t>>({{0, 1, 2}, {2, 0, 1}, {0, 2, 1}});
    decoder.batch = 1 + random.below(2);
    decoder.rotary_size = random.once_in(2) ? 0 : static_cast<int64_t>(2 * (1 + random.below(8)));
    decoder.interleaved = random.once_in(3);
    decoder.expanded = random.once_in(3);
    decoder.cache = random.one_of<std::string>({"f16", "i8", "f32", "bf16"});
    decoder.bias = random.once_in(3);
    decoder.norm = random.once_in(3);
    decoder.sandwich = random.once_in(3);
    decoder.sets = 1 + random.below(2);
    if (random.once_in(2)) {
        for (int64_t layer = 0; layer < decoder.layers; ++layer) {
            decoder.windows.push_back(random.one_of<int64_t>({0, 1, 7, 16, 40, 1000}));
            decoder.angles.push_back(static_cast<int64_t>(random.below(decoder.sets + 1)) - 1);
        }
    }
    decoder.weights.resize(static_cast<size_t>(decoder.layers));
    for (Bytes& weights : decoder.weights) {
        add(random, weights, decoder.hidden, decoder.columns);
        add(random, weights, decoder.inner, decoder.hidden);
        add(random, weights, decoder.inner, decoder.hidden);
        add(random, weights, decoder.hidden, decoder.inner);
        if (decoder.next != 0) {
            add(random, weights, decoder.next, decoder.hidden);
        }
        for (int norm = 0; norm < (decoder.sandwich ? 2 : 0); ++norm) {
            add_vector(weights, decoder.hidden);
        }
    }
    return decoder;
}

inline void damage(Random& random, Decoder& decoder) {
    int64_t* const numbers[] = {&decoder.heads,  &decoder.kv_heads, &decoder.head_size,  &decoder.columns,
                                &decoder.hidden, &decoder.layers,   &decoder.rotary_size};
    switch (random.below(7)) {
        case 6: decoder.cache = random.one_of<std::string>({"", "i4", "f16", "i8", "f32", "bf16"}); break;
        case 4: decoder.windows = random.one_of<std::vector<int64_t>>({{-1}, {trouble(random)}, {1, 2, 3, 4}}); break;
        case 5: decoder.angles = random.one_of<std::vector<int64_t>>({{-2}, {trouble(random)}, {1, 1, 1}, {7}}); break;
        case 0: *numbers[random.below(7)] = trouble(random); break;
        case 1: nudge(*numbers[random.below(7)], random.one_of<int64_t>({-1, 1, 16})); break;
        case 2: decoder.scale = random.one_of<double>({NAN, INFINITY, -1.0, 1e300}); break;
        default:
            decoder.order =
                random.one_of<std::vector<int64_t>>({{}, {0, 0, 1}, {0, 1, 3}, {-1, 0, 1}, {0, 1, 2, 2}});
    }
}

// Memory as a variable has it: it stays where it is until it is too small, and holds what was written last, in whatever
// shape. Exact, or with room, which a longer sequence before left.
class Cache {
public:
    ov::Tensor& of(const ov::Shape& shape, size_t room) {
        const size_t bytes = ov::shape_size(shape);
        if (memory_ == nullptr || size_ < bytes) {
            size_ = std::max(bytes, room);
            memory_ = std::make_unique<ExactTensor>(ov::element::u8, ov::Shape{size_});
        }
        tensor_ = ov::Tensor(ov::element::u8, shape, memory_->tensor().data());
        return tensor_;
    }
    ov::Tensor& tensor() { return tensor_; }

private:
    std::unique_ptr<ExactTensor> memory_;
    size_t size_ = 0;
    ov::Tensor tensor_;
};

class DecoderRun {
public:
    DecoderRun(Random& random, const Decoder& decoder) : random_(random), decoder_(decoder) {
        const auto parameter = [](ov::element::Type type) {
            return std::make_shared<ov::op::v0::Parameter>(type, ov::PartialShape::dynamic());
        };
        layer_ = std::make_shared<shearling::SparseDecoder>();
        ov::OutputVector arguments{
            parameter(ov::element::f32), parameter(ov::element::f32), parameter(ov::element::u8),
            parameter(ov::element::u8)};
        for (const Bytes& weights : decoder.weights) {
            weights_.emplace_back(ov::element::u8, ov::Shape{weights.size()}, const_cast<uint8_t*>(weights.data()));
            arguments.push_back(std::make_shared<ov::op::v0::Constant>(weights_.back()));
        }
        if (decoder.bias || decoder.norm) {
            arguments.push_back(parameter(ov::element::f32));
        }
        layer_->set_arguments(arguments);
        DecoderSetter attributes(decoder);
        layer_->visit_attributes(attributes);
        layer_->constructor_validate_and_infer_types();
        step_ = std::make_shared<shearling::SparseStep>();
    }

    // Computes some steps; throws where something is refused.
    void run(bool damaged) {
        room_ = random_.once_in(2) ? size_t{1} << 19 : 0;
        for (size_t sequence = random_.below(2); sequence < 2; ++sequence) {
            const size_t steps = 1 + random_.below(6);
            // Now and then up to where a cache grows.
            // Past what a tile of attention has.
            size_t past = 0, rows = random_.once_in(4) ? random_.one_of<size_t>({190, 273}) : 1 + random_.below(30);
            for (size_t step = 0; step < steps; ++step) {
                if (past != 0 && random_.once_in(3)) {
                    // So far back that a cache is laid out in another way, too.
                    one(past - random_.below(std::min<size_t>(past, random_.one_of({40, 200}))), rows, false, true);
                }
                one(past, rows, damaged && random_.once_in(2), false);
                past += rows;
                if (random_.once_in(3)) {  // a guess was wrong
                    past -= random_.below(std::min<size_t>(past, 40));
                }
                rows = random_.once_in(3) ? random_.below(30) : 1;
            }
        }
    }

private:
    // `fails`: on its way or behind it, so that the cache that is read stays the one it was.
    void one(size_t past, size_t rows, bool damaged, bool fails) {
        const size_t rotated = decoder_.rotated(), slot = decoder_.slot_bytes(), batch = decoder_.batch;
        ov::TensorVector stepping;
        std::vector<std::unique_ptr<ExactTensor>> tables;
        for (size_t table = 0; table < 2 * decoder_.sets; ++table) {
            tables.push_back(std::make_unique<ExactTensor>(ov::element::f32, ov::Shape{1, rows, rotated}));
            fill<float>(tables.back()->tensor(), activations(random_, rows * rotated));
            stepping.push_back(tables.back()->tensor());
        }
        ExactTensor mask(ov::element::i64, {batch, past + rows}), sources(ov::element::i32, {batch});
        std::fill_n(mask.tensor().data<int64_t>(), mask.tensor().get_size(), 1);
        if (random_.once_in(4)) {
            mask.tensor().data<int64_t>()[0] = 0;
        }
        for (size_t row = 0; row < batch; ++row) {
            sources.tensor().data<int32_t>()[row] =
                static_cast<int32_t>(past != 0 && random_.once_in(6) ? random_.below(batch) : row);
        }
        if (damaged && random_.once_in(4)) {
            sources.tensor().data<int32_t>()[0] = static_cast<int32_t>(trouble(random_));
        }
        ov::TensorVector stepped{ov::Tensor(ov::element::u8, {0})};
        stepping.push_back(mask.tensor());
        stepping.push_back(sources.tensor());
        require_kept(step_->evaluate(stepped, stepping), "a step is not supported");
        ExactTensor step(ov::element::u8, stepped[0].get_shape());
        std::memcpy(step.tensor().data(), stepped[0].data(), stepped[0].get_byte_size());
        if (damaged && random_.once_in(2)) {
            damage(random_, static_cast<uint8_t*>(step.tensor().data()), 64);
        }
        const auto columns = static_cast<size_t>(decoder_.qkv_columns());
        ExactTensor qkv(ov::element::f32, {batch, rows, columns});
        ExactTensor residual(ov::element::f32, {batch, rows, static_cast<size_t>(decoder_.hidden)});
        fill<float>(qkv.tensor(), activations(random_, qkv.tensor().get_size()));
        fill<float>(residual.tensor(), activations(random_, residual.tensor().get_size()));

        Cache& old = caches_[turn_];
        Cache& fresh = caches_[1 - turn_];
        ov::Tensor none(ov::element::u8, {batch, decoder_.cache_heads(), 0, slot});
        ov::Tensor cache = past == 0 ? none : old.tensor();
        if (damaged && random_.once_in(3)) {  // cut off, as whoever takes a state back does
            ov::Shape shape = cache.get_shape();
            shape[random_.below(4)] = random_.below(4) * 7;
            cut_ = std::make_unique<ExactTensor>(ov::element::u8, shape);
            cache = cut_->tensor();
        }
        const ov::Shape next_shape{batch, decoder_.cache_heads(), shearling::slots_for(past + rows), slot};
        ExactTensor vectors(ov::element::f32, {decoder_.vector_length() + (damaged && random_.once_in(6) ? 1 : 0)});
        fill<float>(vectors.tensor(), activations(random_, vectors.tensor().get_size()));
        ov::TensorVector inputs{qkv.tensor(), residual.tensor(), step.tensor(), cache};
        inputs.insert(inputs.end(), weights_.begin(), weights_.end());
        if (decoder_.bias || decoder_.norm) {
            inputs.push_back(vectors.tensor());
        }
        if (fails) {
            const ShortMemory memory(static_cast<int>(1 + random_.below(60)));
            try {
                evaluate_into(fresh.of(next_shape, room_), inputs);
            } catch (const std::bad_alloc&) {
            }
            return;
        }
        const auto results = evaluate_into(fresh.of(next_shape, room_), inputs);
        // In memory that knows nothing of the steps before, the same comes out.
        ExactTensor strange(ov::element::u8, next_shape), copy(ov::element::u8, cache.get_shape());
        std::memcpy(copy.tensor().data(), cache.data(), cache.get_byte_size());
        std::memset(strange.tensor().data(), 0xFF, strange.tensor().get_byte_size());
        inputs[3] = copy.tensor();
        require_kept(evaluate_into(strange.tensor(), inputs) == results, "what a cache held before matters");
        turn_ = 1 - turn_;
    }

    std::vector<Bytes> evaluate_into(ov::Tensor& cache, const ov::TensorVector& inputs) {
        ov::TensorVector outputs{ov::Tensor(ov::element::f32, {0}), cache};
        if (decoder_.next != 0) {
            outputs.emplace_back(ov::element::f32, ov::Shape{0});
        }
        require_kept(layer_->evaluate(outputs, inputs), "a decoder layer is not supported");
        require_kept(outputs[1].data() == cache.data(), "a cache is not written where it should be");
        std::vector<Bytes> results;
        for (size_t index = 0; index < outputs.size(); index += 2) {
            const auto* data = static_cast<const uint8_t*>(outputs[index].data());
            results.emplace_back(data, data + outputs[index].get_byte_size());
        }
        return results;
    }

    Random& random_;
    const Decoder& decoder_;
    ov::TensorVector weights_;
    std::shared_ptr<shearling::SparseDecoder> layer_;
    std::shared_ptr<shearling::SparseStep> step_;
    Cache caches_[2];
    std::unique_ptr<ExactTensor> cut_;
    size_t turn_ = 0, room_ = 0;
};

}  // namespace fuzz
