// Llama and Qwen2: rotary attention with grouped queries, RMS norms, SwiGLU.      (Llama 2, 2023; Llama 3, 2024; Qwen2,
// 2024) Qwen2 has biases on queries, keys and values, and may look through windows in its upper layers.
#include "core/error.h"
#include "interop/family.h"
#include "interop/published.h"

namespace lineal {
namespace {

constexpr RopeNames kLlamaRope = {.has_share = false};

/// The fields of both; each takes its own for granted.
struct LlamaConfig : PublishedConfig {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 11008;
  int64_t num_hidden_layers = 32;
  int64_t num_attention_heads = 32;
  std::string hidden_act = "silu";
  int64_t max_position_embeddings = 2048;
  double initializer_range = 0.02;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool use_sliding_window = false;
  int64_t max_window_layers = 28;

  std::vector<Field> fields() override {
    return {
        {"vocab_size", &vocab_size, between(1, 1 << 24), ""},
        {"hidden_size", &hidden_size, size_range(), ""},
        {"intermediate_size", &intermediate_size, between(1, 1 << 22), ""},
        {"num_hidden_layers", &num_hidden_layers, between(1, 4096), ""},
        {"num_attention_heads", &num_attention_heads, size_range(), ""},
        {"hidden_act", &hidden_act, {}, ""},
        {"max_position_embeddings", &max_position_embeddings, between(1, 1LL << 40), ""},
        {"initializer_range", &initializer_range, between(0, 10), ""},
        {"rms_norm_eps", &rms_norm_eps, between(0, 1), ""},
        {"tie_word_embeddings", &tie_word_embeddings, {}, ""},
        {"attention_bias", &attention_bias, {}, ""},
        {"mlp_bias", &mlp_bias, {}, ""},
        {"use_sliding_window", &use_sliding_window, {}, ""},
        {"max_window_layers", &max_window_layers, between(0, 1 << 20), ""},
    };
  }
};

/// The model but for its layers, and what they have in common.
LanguageModelConfig read_common(const LlamaConfig& published, const Json& json, const std::string& who, Json& layer) {
  const int64_t D = published.hidden_size, H = published.num_attention_heads;
  const int64_t K = whole_or(json, "head_dim", 0, who), H_kv = whole_or(json, "num_key_value_heads", H, who);
  if (K == 0 && D % H != 0) fail(who, ": num_attention_heads is ", H, ", expected a divisor of hidden_size ", D);
  if (K < 0 || K > 1 << 20) fail(who, ": head_dim is ", K, ", expected 1 to ", 1 << 20);
  if (H_kv < 1 || H % H_kv != 0) {
    fail(who, ": num_key_value_heads is ", H_kv, ", expected a divisor of num_attention_heads ", H);
  }
  LanguageModelConfig config;
  config.vocab_size = published.vocab_size;
  config.hidden_size = D;
  config.intermediate_size = published.intermediate_size;
  config.rms_norm_eps = published.rms_norm_eps;
  config.initializer_range = published.initializer_range;
  config.tie_word_embeddings = published.tie_word_embeddings;
  config.activation = read_activation("hidden_act", published.hidden_act, who);
  layer = {{"mixer", "attention"}, {"num_attention_heads", H}, {"num_key_value_heads", H_kv}};
  if (K > 0 && K * H != D) layer["head_dim"] = K;
  layer.update(read_rope(json, kLlamaRope, K > 0 ? K : D / H, published.max_position_embeddings, who));
  return config;
}

LanguageModelConfig read_llama(const Json& json, const std::string& who) {
  LlamaConfig published;
  published.read_known(json, who);
  Json layer;
  LanguageModelConfig config = read_common(published, json, who, layer);
  config.ffn_bias = published.mlp_bias;
  layer["qkv_bias"] = layer["out_bias"] = published.attention_bias;
  config.layers = read_layers(Json(static_cast<size_t>(published.num_hidden_layers), layer));
  return config;
}

LanguageModelConfig read_qwen2(const Json& json, const std::string& who) {
  LlamaConfig published;
  published.vocab_size = 151936, published.intermediate_size = 22016, published.max_position_embeddings = 32768;
  published.read_known(json, who);
  Json layer;
  LanguageModelConfig config = read_common(published, json, who, layer);
  layer["qkv_bias"] = true;
  const int64_t L = published.num_hidden_layers;
  const int64_t usual = json.contains("sliding_window") ? 0 : 4096;  // null: none
  const int64_t window = published.use_sliding_window ? whole_or(json, "sliding_window", usual, who) : 0;
  const Json kinds = json.contains("layer_types") ? json["layer_types"] : Json();
  if (!kinds.is_null() && (!kinds.is_array() || static_cast<int64_t>(kinds.size()) != L)) {
    fail(who, ": layer_types is ", line_of(kinds).substr(0, 100), ", expected a list of num_hidden_layers ", L);
  }
  Json layers(static_cast<size_t>(L), layer);
  for (size_t i = 0; i < layers.size(); ++i) {
    const bool listed = !kinds.is_null(), sliding = listed && kinds[i] == "sliding_attention";
    if (listed && !sliding && kinds[i] != "full_attention") {
      fail(who, ": layer_types has ", line_of(kinds[i]), ", expected full_attention or sliding_attention");
    }
    if (listed ? sliding : static_cast<int64_t>(i) >= published.max_window_layers) layers[i]["sliding_window"] = window;
  }
  config.layers = read_layers(layers);
  return config;
}

Json write_common(const LanguageModelConfig& config) {
  const Json options = all_options(config.layers[0]);
  Json json = {{"architectures", Json::array()},
               {"model_type", ""},
               {"vocab_size", config.vocab_size},
               {"hidden_size", config.hidden_size},
               {"intermediate_size", std::max<int64_t>(config.intermediate_size, 1)},
               {"num_hidden_layers", config.layers.size()},
               {"num_attention_heads", options.value("num_attention_heads", 1)},
               {"hidden_act", write_activation(config.activation)},
               {"rms_norm_eps", config.rms_norm_eps},
               {"initializer_range", config.initializer_range},
               {"tie_word_embeddings", config.tie_word_embeddings}};
  if (config.layers[0].mixer != "attention") return json;
  const auto H_kv = options["num_key_value_heads"].get<int64_t>();
  json["num_key_value_heads"] = H_kv > 0 ? Json(H_kv) : options["num_attention_heads"];
  json["head_dim"] = head_size_of(options, config.hidden_size);
  json.update(write_rope(options, kLlamaRope, head_size_of(options, config.hidden_size)));
  return json;
}

Json write_llama(const LanguageModelConfig& config) {
  Json json = write_common(config);
  json["architectures"] = {"LlamaForCausalLM"}, json["model_type"] = "llama";
  json["attention_bias"] = all_options(config.layers[0]).value("qkv_bias", false), json["mlp_bias"] = config.ffn_bias;
  return json;
}

Json write_qwen2(const LanguageModelConfig& config) {
  Json json = write_common(config);
  json["architectures"] = {"Qwen2ForCausalLM"}, json["model_type"] = "qwen2";
  int64_t window = 0;
  Json kinds = Json::array();
  for (const Layer& layer : config.layers) {
    const int64_t own = all_options(layer).value("sliding_window", 0);
    kinds.push_back(own > 0 ? "sliding_attention" : "full_attention");
    if (own > 0) window = own;
  }
  json["use_sliding_window"] = window > 0;
  if (window > 0) json["sliding_window"] = window, json["layer_types"] = kinds;
  return json;
}

NameRules llama_rules() {
  NameRules table = {
      .prefix = "model.",
      .rules = {{"model.embed_tokens.weight", {"model.embed_tokens.weight"}},
                {"model.layers.*.input_layernorm.weight", {"model.layers.*.seq_norm.weight"}},
                {"model.layers.*.post_attention_layernorm.weight", {"model.layers.*.ffn_norm.weight"}},
                {"model.norm.weight", {"model.norm.weight"}},
                {"lm_head.weight", {"lm_head.weight"}}},
      .empty = {"model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "lm_head.weight"}};
  for (const std::string kind : {".weight", ".bias"}) {
    for (const std::string map : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
      table.rules.push_back(
          {"model.layers.*.self_attn." + map + kind, {"model.layers.*.seq_modeling_block." + map + kind}});
    }
    for (const std::string map : {"gate_proj", "up_proj", "down_proj"}) {
      table.rules.push_back({"model.layers.*.mlp." + map + kind, {"model.layers.*.mlp." + map + kind}});
    }
  }
  return table;
}

}  // namespace

extern const FamilySpec llama_family_spec, qwen2_family_spec;
const FamilySpec llama_family_spec = {
    .name = "llama", .help = "Llama (2023, 2024)", .read = read_llama, .write = write_llama, .rules = llama_rules()};
const FamilySpec qwen2_family_spec = {.name = "qwen2",
                                      .help = "Qwen2 and Qwen2.5 (2024)",
                                      .read = read_qwen2,
                                      .write = write_qwen2,
                                      .rules = llama_rules()};

}  // namespace lineal
