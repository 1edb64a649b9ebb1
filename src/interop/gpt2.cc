// GPT-2: attention with learned positions, layer norms before it and the feed-forward part.      (GPT-2, 2019)
// Its maps are stored [in, out]; c_attn's output is queries, keys and values side by side.
#include <cmath>

#include "core/error.h"
#include "interop/family.h"
#include "interop/published.h"

namespace lineal {
namespace {

struct GPT2Config : PublishedConfig {
  int64_t vocab_size = 50257;
  int64_t n_positions = 1024;
  int64_t n_embd = 768;
  int64_t n_layer = 12;
  int64_t n_head = 12;
  int64_t n_inner = 0;
  std::string activation_function = "gelu_new";
  double layer_norm_epsilon = 1e-5;
  double initializer_range = 0.02;
  bool scale_attn_weights = true;
  bool scale_attn_by_inverse_layer_idx = false;
  bool add_cross_attention = false;
  bool tie_word_embeddings = true;

  std::vector<Field> fields() override {
    return {
        {"vocab_size", &vocab_size, between(1, 1 << 24), ""},
        {"n_positions", &n_positions, between(1, 1 << 24), ""},
        {"n_embd", &n_embd, size_range(), ""},
        {"n_layer", &n_layer, between(1, 4096), ""},
        {"n_head", &n_head, size_range(), ""},
        {"n_inner", &n_inner, between(1, 1 << 22), ""},
        {"activation_function", &activation_function, {}, ""},
        {"layer_norm_epsilon", &layer_norm_epsilon, between(0, 1), ""},
        {"initializer_range", &initializer_range, between(0, 10), ""},
        {"scale_attn_weights", &scale_attn_weights, {}, ""},
        {"scale_attn_by_inverse_layer_idx", &scale_attn_by_inverse_layer_idx, {}, ""},
        {"add_cross_attention", &add_cross_attention, {}, ""},
        {"tie_word_embeddings", &tie_word_embeddings, {}, ""},
    };
  }
};

/// The names of other families, which stand for GPT-2's own.
constexpr std::pair<const char*, const char*> kOtherNames[] = {{"n_embd", "hidden_size"},
                                                               {"n_positions", "max_position_embeddings"},
                                                               {"n_head", "num_attention_heads"},
                                                               {"n_layer", "num_hidden_layers"}};

Json with_own_names(Json json, const std::string& who) {
  for (const auto& [own, other] : kOtherNames) {
    const Json value = json.value(other, Json());
    if (value.is_null()) continue;
    if (!json.value(own, Json()).is_null() && json[own] != value) {
      fail(who, ": ", own, " is ", line_of(json[own]), " and ", other, " ", line_of(value), ", expected the same");
    }
    json[own] = value;
  }
  return json;
}

LanguageModelConfig read_gpt2(const Json& file, const std::string& who) {
  const Json json = with_own_names(file, who);
  GPT2Config published;
  published.read_known(json, who);
  if (published.add_cross_attention) fail(who, ": add_cross_attention is true, expected a decoder without an encoder");
  if (published.n_embd % published.n_head != 0) {
    fail(who, ": n_head is ", published.n_head, ", expected a divisor of n_embd ", published.n_embd);
  }
  LanguageModelConfig config;
  config.vocab_size = published.vocab_size;
  config.hidden_size = published.n_embd;
  config.intermediate_size = published.n_inner > 0 ? published.n_inner : 4 * published.n_embd;
  config.rms_norm_eps = published.layer_norm_epsilon;
  config.initializer_range = published.initializer_range;
  config.tie_word_embeddings = published.tie_word_embeddings;
  config.norm = "layer";
  config.ffn = "mlp";
  config.activation = read_activation("activation_function", published.activation_function, who);
  config.ffn_bias = true;
  config.max_positions = published.n_positions;
  const double usual =
      published.scale_attn_weights ? 1 / std::sqrt(static_cast<double>(published.n_embd / published.n_head)) : 1;
  Json layers = Json::array();
  for (int64_t i = 0; i < published.n_layer; ++i) {
    Json layer = {{"mixer", "attention"},
                  {"num_attention_heads", published.n_head},
                  {"position", "none"},
                  {"qkv_bias", true},
                  {"out_bias", true}};
    const double share = published.scale_attn_by_inverse_layer_idx ? static_cast<double>(i + 1) : 1;
    if (!published.scale_attn_weights || share != 1) layer["scale"] = usual / share;
    layers.push_back(layer);
  }
  config.layers = read_layers(layers);
  return config;
}

Json write_gpt2(const LanguageModelConfig& config) {
  const Json options = all_options(config.layers[0]);
  Json json = {{"architectures", {"GPT2LMHeadModel"}},
               {"model_type", "gpt2"},
               {"vocab_size", config.vocab_size},
               {"n_positions", std::max<int64_t>(config.max_positions, 1)},
               {"n_embd", config.hidden_size},
               {"n_layer", config.layers.size()},
               {"n_head", options.value("num_attention_heads", 1)},
               {"n_inner", config.intermediate_size > 0 ? Json(config.intermediate_size) : Json()},
               {"activation_function", write_activation(config.activation)},
               {"layer_norm_epsilon", config.rms_norm_eps},
               {"initializer_range", config.initializer_range},
               {"tie_word_embeddings", config.tie_word_embeddings}};
  json["scale_attn_weights"] = options.value("scale", 0.0) != 1.0;
  if (config.layers.size() > 1) {
    const double last = all_options(config.layers.back()).value("scale", 0.0);
    json["scale_attn_by_inverse_layer_idx"] = last != 0 && last != options.value("scale", 0.0);
  }
  return json;
}

}  // namespace

extern const FamilySpec gpt2_family_spec;
const FamilySpec gpt2_family_spec = {
    .name = "gpt2",
    .help = "GPT-2 (2019)",
    .read = read_gpt2,
    .write = write_gpt2,
    .rules = {
        .prefix = "transformer.",
        .rules = {{"transformer.wte.weight", {"model.embed_tokens.weight"}},
                  {"transformer.wpe.weight", {"model.embed_positions.weight"}},
                  {"transformer.h.*.ln_1.weight", {"model.layers.*.seq_norm.weight"}},
                  {"transformer.h.*.ln_1.bias", {"model.layers.*.seq_norm.bias"}},
                  {"transformer.h.*.attn.c_attn.weight",
                   {"model.layers.*.seq_modeling_block.q_proj.weight",
                    "model.layers.*.seq_modeling_block.k_proj.weight",
                    "model.layers.*.seq_modeling_block.v_proj.weight"},
                   Layout::side_by_side},
                  {"transformer.h.*.attn.c_attn.bias",
                   {"model.layers.*.seq_modeling_block.q_proj.bias", "model.layers.*.seq_modeling_block.k_proj.bias",
                    "model.layers.*.seq_modeling_block.v_proj.bias"},
                   Layout::side_by_side},
                  {"transformer.h.*.attn.c_proj.weight",
                   {"model.layers.*.seq_modeling_block.o_proj.weight"},
                   Layout::transposed},
                  {"transformer.h.*.attn.c_proj.bias", {"model.layers.*.seq_modeling_block.o_proj.bias"}},
                  {"transformer.h.*.ln_2.weight", {"model.layers.*.ffn_norm.weight"}},
                  {"transformer.h.*.ln_2.bias", {"model.layers.*.ffn_norm.bias"}},
                  {"transformer.h.*.mlp.c_fc.weight", {"model.layers.*.mlp.up_proj.weight"}, Layout::transposed},
                  {"transformer.h.*.mlp.c_fc.bias", {"model.layers.*.mlp.up_proj.bias"}},
                  {"transformer.h.*.mlp.c_proj.weight", {"model.layers.*.mlp.down_proj.weight"}, Layout::transposed},
                  {"transformer.h.*.mlp.c_proj.bias", {"model.layers.*.mlp.down_proj.bias"}},
                  {"transformer.ln_f.weight", {"model.norm.weight"}},
                  {"transformer.ln_f.bias", {"model.norm.bias"}},
                  {"lm_head.weight", {"lm_head.weight"}}},
        .empty = {"transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias", "lm_head.weight"}}};

}  // namespace lineal
