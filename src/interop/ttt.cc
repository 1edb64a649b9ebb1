// TTT-Linear and TTT-MLP as published.          (Learning to (Learn at Test Time): RNNs with Expressive Hidden States,
// 2024)
#include "core/error.h"
#include "interop/family.h"
#include "interop/published.h"

namespace lineal {
namespace {

struct TTTModelConfig : PublishedConfig {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 2048;
  int64_t intermediate_size = 5504;
  int64_t num_hidden_layers = 24;
  int64_t num_attention_heads = 32;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  double initializer_range = 0.02;
  bool tie_word_embeddings = true;
  bool use_gate = false;
  bool share_qk = false;
  bool pre_conv = false;
  int64_t conv_kernel = 4;
  int64_t mini_batch_size = 16;
  double ttt_base_lr = 1.0;
  std::string ttt_layer_type = "linear";
  std::string hidden_act = "silu";

  std::vector<Field> fields() override {
    return {
        {"vocab_size", &vocab_size, between(1, 1 << 24), ""},
        {"hidden_size", &hidden_size, size_range(), ""},
        {"intermediate_size", &intermediate_size, between(1, 1 << 22), ""},
        {"num_hidden_layers", &num_hidden_layers, between(1, 4096), ""},
        {"num_attention_heads", &num_attention_heads, size_range(), ""},
        {"rms_norm_eps", &rms_norm_eps, between(0, 1), ""},
        {"rope_theta", &rope_theta, at_least(1), ""},
        {"initializer_range", &initializer_range, between(0, 10), ""},
        {"tie_word_embeddings", &tie_word_embeddings, {}, ""},
        {"use_gate", &use_gate, {}, ""},
        {"share_qk", &share_qk, {}, ""},
        {"pre_conv", &pre_conv, {}, ""},
        {"conv_kernel", &conv_kernel, between(1, 64), ""},
        {"mini_batch_size", &mini_batch_size, size_range(), ""},
        {"ttt_base_lr", &ttt_base_lr, between(0, 1e6), ""},
        {"ttt_layer_type", &ttt_layer_type, one_of({"linear", "mlp"}), ""},
        {"hidden_act", &hidden_act, one_of({"silu"}), ""},
    };
  }
};

LanguageModelConfig read_ttt(const Json& json, const std::string& who) {
  TTTModelConfig published;
  published.read_known(json, who);
  LanguageModelConfig config;
  config.vocab_size = published.vocab_size;
  config.hidden_size = published.hidden_size;
  config.intermediate_size = published.intermediate_size;
  config.rms_norm_eps = published.rms_norm_eps;
  config.initializer_range = published.initializer_range;
  config.tie_word_embeddings = published.tie_word_embeddings;
  config.pre_conv = published.pre_conv;
  config.conv_kernel = published.conv_kernel;
  const Json options = {
      {"mixer", "ttt_" + published.ttt_layer_type},
      {"num_attention_heads", published.num_attention_heads},
      {"mini_batch_size", published.mini_batch_size},
      {"ttt_base_lr", published.ttt_base_lr},
      {"share_qk", published.share_qk},
      {"use_gate", published.use_gate},
      {"conv_kernel", published.conv_kernel},
      {"rope_theta", published.rope_theta},
  };
  config.layers = read_layers(Json(static_cast<size_t>(published.num_hidden_layers), options));
  return config;
}

Json write_ttt(const LanguageModelConfig& config) {
  const Layer& layer = config.layers[0];
  Json json = {{"architectures", {"TTTForCausalLM"}},
               {"model_type", "ttt"},
               {"vocab_size", config.vocab_size},
               {"hidden_size", config.hidden_size},
               {"intermediate_size", std::max<int64_t>(config.intermediate_size, 1)},
               {"num_hidden_layers", config.layers.size()},
               {"rms_norm_eps", config.rms_norm_eps},
               {"initializer_range", config.initializer_range},
               {"tie_word_embeddings", config.tie_word_embeddings},
               {"pre_conv", config.pre_conv},
               {"conv_kernel", config.conv_kernel},
               {"ttt_layer_type", layer.mixer == "ttt_mlp" ? "mlp" : "linear"},
               {"hidden_act", "silu"}};
  const Json options = all_options(layer);
  for (const char* name :
       {"num_attention_heads", "mini_batch_size", "ttt_base_lr", "share_qk", "use_gate", "rope_theta", "conv_kernel"}) {
    if (options.contains(name)) json[name] = options[name];
  }
  return json;
}

}  // namespace

extern const FamilySpec ttt_family_spec;
const FamilySpec ttt_family_spec = {.name = "ttt",
                                    .help = "TTT-Linear and TTT-MLP language models as published (arXiv 2407.04620)",
                                    .read = read_ttt,
                                    .write = write_ttt,
                                    .rules = {}};

}  // namespace lineal
