// Reads a text with a model and prints what it thinks the next byte is; the state is all that is kept of the text.
#include <ATen/ATen.h>
#include <core/error.h>
#include <interop/load.h>

#include <cstring>
#include <iostream>

int main(int argc, char** argv) {
  const auto flag = [&](const char* name, const std::string& otherwise) {
    for (int i = 1; i + 1 < argc; ++i) {
      if (std::strcmp(argv[i], name) == 0) return std::string(argv[i + 1]);
    }
    return otherwise;
  };
  const std::string directory = flag("-m", ""), prompt = flag("--prompt", "Hello");
  if (prompt.empty()) {
    std::cerr << "embed: --prompt is empty, expected a byte at least\n";
    return 2;
  }
  try {
    lineal::LanguageModelConfig config;  // untrained, for when no directory is given
    config.hidden_size = 64;
    config.intermediate_size = 128;
    config.layers = lineal::parse_plan("ttt_linear*2");
    const auto model =
        directory.empty() ? std::make_shared<lineal::LanguageModel>(config) : lineal::load_model(directory).model;
    const std::vector<int64_t> bytes(prompt.begin(), prompt.end());
    const at::NoGradGuard no_grad;
    lineal::State state = model->initial_state(1);
    at::Tensor logits;
    for (const int64_t byte : bytes) logits = model->forward(at::full({1, 1}, byte & 255, at::kLong), state);
    const auto [p, id] = logits.flatten().softmax(0).topk(5);
    for (int i = 0; i < 5; ++i) {
      std::cout << "next byte " << id[i].item<int64_t>() << ": " << p[i].item<double>() << "\n";
    }
    std::cout << bytes.size() << " bytes read, " << state.bytes() << " bytes of state\n";
  } catch (const lineal::Error& error) {
    std::cerr << "embed: " << error.what() << "\n";
    return 2;
  }
}
