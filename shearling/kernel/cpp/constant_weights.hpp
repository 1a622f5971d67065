// The constant of a model that an operator takes its weights from.
//
// Its headers are checked when the node is made. When a runtime makes ready to compute with it, it is copied, the copy
// is validated completely, and nothing but the copy is read from then on: what becomes of a mapped file, or of memory
// at the same address, does not matter. Models of one process whose weights are the same bytes share the copy.
#pragma once

#include <memory>
#include <mutex>
#include <openvino/op/constant.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tbb_threads.hpp"
#include "weights.hpp"

namespace shearling {

class ConstantWeights {
public:
    using Constant = ov::op::v0::Constant;

    // `constant` is kept, so that nothing else can come to lie at its address.
    ConstantWeights(std::shared_ptr<const Constant> constant, WeightLayout layout)
        : constant_(std::move(constant)), layout_(std::move(layout)) {}

    // Null, or what is wrong with types, sizes and headers.
    const char* fault() const {
        const ov::Shape& shape = constant_->get_shape();
        const size_t rank = shape.size();
        // [..., bytes, 1] is what OpenVINO makes of it where it takes an operator for a MatMul; in any other shape it
        // could be multiplied by in earnest.
        const bool flat = rank == 1 || (rank > 1 && shape[rank - 1] == 1 && shape[rank - 2] == size());
        if (constant_->get_element_type() != ov::element::u8 || !flat) {
            return "it is not u8 [bytes]";
        }
        for (const auto& [rows, columns] : layout_.matrices) {
            if (rows <= 0 || columns <= 0) {
                return "its operator names a matrix without rows or columns";
            }
        }
        std::vector<PackedMatrix> matrices;
        size_t end = 0;
        return read_layout(bytes(), size(), layout_, matrices, end);
    }

    // Whether another constant shows the same memory, as those that OpenVINO clones for every inference do.
    bool shows(const Constant& other) const {
        return other.get_data_ptr() == constant_->get_data_ptr() && other.get_byte_size() == size();
    }

    const WeightLayout& layout() const { return layout_; }
    size_t size() const { return constant_->get_byte_size(); }

    // The validated copy, made or found by the first call. Throws where the weights are not what the layout says.
    std::shared_ptr<const Weights> validated() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (weights_ == nullptr) {
            const char* fault = nullptr;
            weights_ = share_weights(bytes(), size(), layout_, fault, isolated_tbb_threads());
            OPENVINO_ASSERT(fault == nullptr, "a packed weight is corrupt: ", fault);
        }
        return weights_;
    }

private:
    const uint8_t* bytes() const { return static_cast<const uint8_t*>(constant_->get_data_ptr()); }

    std::shared_ptr<const Constant> constant_;
    WeightLayout layout_;
    mutable std::mutex mutex_;
    mutable std::shared_ptr<const Weights> weights_;
};

}  // namespace shearling
