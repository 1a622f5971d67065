// Continues a prompt greedily with a sparse export: generate DIR PROMPT [TOKENS]
//
// The operators are an extension of OpenVINO, as the tokenizers are. A program that ships names its own paths instead
// of those that CMake found, OPERATORS and TOKENIZERS.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

namespace {

ov::Tensor row(std::vector<int64_t>& values) {
    return ov::Tensor(ov::element::i64, {1, values.size()}, values.data());
}

std::vector<int64_t> encode(ov::Core& core, const std::string& directory, std::string text) {
    ov::InferRequest request =
        core.compile_model(directory + "/openvino_tokenizer.xml", "CPU").create_infer_request();
    request.set_input_tensor(ov::Tensor(ov::element::string, {1}, &text));
    request.infer();
    const ov::Tensor ids = request.get_tensor("input_ids");
    return {ids.data<int64_t>(), ids.data<int64_t>() + ids.get_size()};
}

std::string decode(ov::Core& core, const std::string& directory, std::vector<int64_t> tokens) {
    ov::InferRequest request =
        core.compile_model(directory + "/openvino_detokenizer.xml", "CPU").create_infer_request();
    request.set_input_tensor(row(tokens));
    request.infer();
    return *request.get_output_tensor().data<std::string>();
}

bool has_input(const ov::CompiledModel& model, const std::string& name) {
    const auto& inputs = model.inputs();
    return std::any_of(inputs.begin(), inputs.end(), [&](const auto& input) { return input.get_names().count(name) != 0; });
}

// Reads `tokens` behind the `seen` that its cache holds, and gives the most likely next one.
int64_t next_token(ov::InferRequest& request, std::vector<int64_t> tokens, size_t seen, bool takes_positions) {
    std::vector<int64_t> attended(seen + tokens.size(), 1), positions(tokens.size());
    for (size_t index = 0; index < positions.size(); ++index) {
        positions[index] = static_cast<int64_t>(seen + index);
    }
    int32_t beam = 0;
    request.set_tensor("input_ids", row(tokens));
    request.set_tensor("attention_mask", row(attended));
    if (takes_positions) {
        request.set_tensor("position_ids", row(positions));
    }
    request.set_tensor("beam_idx", ov::Tensor(ov::element::i32, {1}, &beam));
    request.infer();
    const ov::Tensor logits = request.get_tensor("logits");  // [1, tokens, vocabulary]
    const size_t vocabulary = logits.get_shape().back();
    const float* const last = logits.data<float>() + logits.get_size() - vocabulary;
    return std::max_element(last, last + vocabulary) - last;
}

void run(const std::string& directory, const std::string& prompt, size_t most) {
    ov::Core core;
    core.add_extension(std::string(OPERATORS));
    core.add_extension(std::string(TOKENIZERS));
    // What packed models ran fastest with: shearling_runtime.preferred_properties().
    ov::CompiledModel model = core.compile_model(
        directory + "/openvino_model.xml", "CPU",
        {{"INFERENCE_PRECISION_HINT", "f32"}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE", "0"}});
    ov::InferRequest request = model.create_infer_request();
    const bool takes_positions = has_input(model, "position_ids");

    std::vector<int64_t> chunk = encode(core, directory, prompt), made;
    for (size_t seen = 0; made.size() < most;) {
        const int64_t token = next_token(request, chunk, seen, takes_positions);
        seen += chunk.size();
        chunk = {token};
        made.push_back(token);
    }
    std::cout << decode(core, directory, made) << std::endl;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) {
        std::cerr << "usage: generate DIR PROMPT [TOKENS]\n";
        return 2;
    }
    try {
        run(arguments[1], arguments[2], count > 3 ? std::strtoul(arguments[3], nullptr, 10) : 32);
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 3;
    }
}
