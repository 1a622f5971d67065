// The operator `SparseLinear` of domain `shearling` for ONNX Runtime; shearling/kernel/packed_format.py specifies it.
//
// ONNX Runtime hands its C interface over when it loads the library, so nothing links against it.
#include <onnxruntime_c_api.h>

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "linear.hpp"
#include "weights.hpp"

namespace shearling {
namespace {

// The first with all that is used here: parallel loops came in 17.
constexpr uint32_t api_version = 17;
static_assert(ORT_API_VERSION >= api_version, "the headers are older than ONNX Runtime 1.17");
constexpr char domain_name[] = "shearling";
constexpr size_t x_input = 0, weights_input = 1;

// A status of ONNX Runtime on its way to the caller, who owns it.
struct Failure {
    OrtStatus* status;
};

void check(OrtStatus* status) {
    if (status != nullptr) {
        throw Failure{status};
    }
}

void require(bool condition, const std::string& message) {
    if (!condition) {
        throw std::runtime_error(message);
    }
}

// Runs what may throw, where no exception may leave.
template <class Body>
OrtStatus* guarded(const OrtApi& api, const Body& body) noexcept {
    try {
        body();
        return nullptr;
    } catch (const Failure& failure) {
        return failure.status;
    } catch (const std::exception& error) {
        return api.CreateStatus(ORT_FAIL, error.what());
    } catch (...) {
        return api.CreateStatus(ORT_FAIL, "the sparse operator failed for an unknown reason");
    }
}

// The threads of the session, in one call of an operator.
class SessionThreads final : public Threads {
public:
    SessionThreads(const OrtApi& api, const OrtKernelContext& context) : api_(api), context_(context) {}

    // The session does not tell how many it has; those that do not come leave their shares to the others.
    size_t count() const override {
        static const size_t most = std::thread::hardware_concurrency();
        return most;
    }

    void run(size_t count, Task task, void* context) const override {
        constexpr size_t no_batches = 0;
        check(api_.KernelContext_ParallelFor(&context_, task, count, no_batches, context));
    }

private:
    const OrtApi& api_;
    const OrtKernelContext& context_;
};

class TensorShape {
public:
    TensorShape(const OrtApi& api, const OrtValue* tensor) {
        OrtTensorTypeAndShapeInfo* info = nullptr;
        check(api.GetTensorTypeAndShape(tensor, &info));
        const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> owned(
            info, api.ReleaseTensorTypeAndShapeInfo);
        size_t rank = 0;
        check(api.GetDimensionsCount(info, &rank));
        sizes.resize(rank);
        check(api.GetDimensions(info, sizes.data(), rank));
        check(api.GetTensorShapeElementCount(info, &elements));
    }
    std::vector<int64_t> sizes;
    size_t elements = 0;
};

class SparseLinear {
public:
    SparseLinear(const OrtApi& api, const OrtKernelInfo& info)
        : api_(api), rows_(integer(info, "rows")), columns_(integer(info, "columns")) {
        const std::string name = text(api.KernelInfo_GetNodeName, info), precision = attribute_text(info, "precision");
        require(integer(info, "format_version") == 1, name + ": format_version is not 1: made by another version");
        require(
            precision == "auto" || precision == "exact",
            name + ": precision is '" + precision + "', not auto or exact");
        precision_ = precision == "exact" ? Precision::exact : Precision::automatic;
        int constant = 0;
        const OrtValue* packed = nullptr;
        check(api.KernelInfoGetConstantInput_tensor(&info, weights_input, &constant, &packed));
        require(constant != 0, name + ": the packed weight is not an initializer");
        const WeightLayout layout{{{rows_, columns_}}, {}};
        // A session shows its threads when it computes, not when it is made.
        const char* fault = take_weights(
            data<const uint8_t>(packed), TensorShape(api, packed).elements, layout, weights_, CallingThread());
        require(fault == nullptr, name + ": a packed weight is corrupt: " + (fault == nullptr ? "" : fault));
    }

    void compute(OrtKernelContext& context) const {
        const OrtValue* x = nullptr;
        check(api_.KernelContext_GetInput(&context, x_input, &x));
        TensorShape shape(api_, x);
        if (shape.sizes.empty() || shape.sizes.back() != columns_) {
            throw std::runtime_error("the activations do not end in " + std::to_string(columns_));
        }
        shape.sizes.back() = rows_;
        OrtValue* y = nullptr;
        check(api_.KernelContext_GetOutput(&context, 0, shape.sizes.data(), shape.sizes.size(), &y));
        const auto rows = static_cast<size_t>(rows_), columns = static_cast<size_t>(columns_),
                   count = shape.elements / columns;
        const Output output{data<float>(y), rows, nullptr, nullptr, 0};
        const SessionThreads threads(api_, context);
        multiply(
            weights_.matrices.data(), 1, Rows{data<const float>(x), count, columns}, Norm{nullptr, 0.0f}, &output,
            {best_kernels(), precision_, threads});
    }

    OrtStatus* try_to_compute(OrtKernelContext& context) const {
        return guarded(api_, [&] { compute(context); });
    }

private:
    template <class Number, class Value>
    Number* data(Value* tensor) const {
        void* address = nullptr;
        check(api_.GetTensorMutableData(const_cast<OrtValue*>(tensor), &address));
        return static_cast<Number*>(address);
    }

    int64_t integer(const OrtKernelInfo& info, const char* name) const {
        int64_t value = 0;
        check(api_.KernelInfoGetAttribute_int64(&info, name, &value));
        return value;
    }

    std::string attribute_text(const OrtKernelInfo& info, const char* name) const {
        const auto read = [this, name](const OrtKernelInfo* from, char* out, size_t* size) {
            return api_.KernelInfoGetAttribute_string(from, name, out, size);
        };
        return text(read, info);
    }

    // A text that is asked for twice: for its size with the final zero, then for itself.
    template <class Read>
    static std::string text(const Read& read, const OrtKernelInfo& info) {
        size_t size = 0;
        check(read(&info, nullptr, &size));
        std::string content(size, '\0');
        check(read(&info, content.data(), &size));
        content.resize(size == 0 ? 0 : size - 1);
        return content;
    }

    const OrtApi& api_;
    int64_t rows_;
    int64_t columns_;
    Precision precision_ = Precision::automatic;
    Weights weights_;
};

// What ONNX Runtime asks of an operator.
OrtCustomOp describe_sparse_linear() {
    OrtCustomOp description{};
    description.version = api_version;
    description.GetName = [](const OrtCustomOp*) { return "SparseLinear"; };
    description.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    description.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; };
    description.GetInputType = [](const OrtCustomOp*, size_t index) {
        return index == x_input ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    };
    description.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    description.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    description.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    description.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
    description.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    description.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    description.GetEndVersion = [](const OrtCustomOp*) { return 1; };
    description.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info,
                                    void** kernel) -> OrtStatus* {
        return guarded(*api, [&] { *kernel = new SparseLinear(*api, *info); });
    };
    description.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
        return static_cast<const SparseLinear*>(kernel)->try_to_compute(*context);
    };
    description.KernelDestroy = [](void* kernel) { delete static_cast<SparseLinear*>(kernel); };
    return description;
}

void register_operators(const OrtApi& api, OrtSessionOptions& options) {
    static const OrtCustomOp sparse_linear = describe_sparse_linear();
    // Sessions refer to the domain for as long as they live.
    static OrtCustomOpDomain* const domain = [&api] {
        OrtCustomOpDomain* created = nullptr;
        check(api.CreateCustomOpDomain(domain_name, &created));
        check(api.CustomOpDomain_Add(created, &sparse_linear));
        return created;
    }();
    check(api.AddCustomOpDomain(&options, domain));
}

}  // namespace
}  // namespace shearling

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(shearling::api_version);
    if (api == nullptr) {
        // Without its interface an error cannot be returned: an ONNX Runtime this old will say that it does not know
        // the operator.
        return nullptr;
    }
    return shearling::guarded(*api, [&] { shearling::register_operators(*api, *options); });
}
