// GPT-NeoX and Pythia: attention that turns a part of each head, beside the feed-forward part.   (GPT-NeoX-20B, 2022)
// query_key_value's output is queries, keys and values of a head, one head after another.
#include "core/error.h"
#include "interop/family.h"
#include "interop/published.h"

namespace lineal {
namespace {

constexpr RopeNames kNeoxRope = {.theta = "rotary_emb_base", .share = "rotary_pct", .default_share = 0.25};

struct NeoXConfig : PublishedConfig {
  int64_t vocab_size = 50432;
  int64_t hidden_size = 6144;
  int64_t num_hidden_layers = 44;
  int64_t num_attention_heads = 64;
  int64_t intermediate_size = 24576;
  std::string hidden_act = "gelu";
  int64_t max_position_embeddings = 2048;
  double initializer_range = 0.02;
  double layer_norm_eps = 1e-5;
  bool tie_word_embeddings = false;
  bool use_parallel_residual = true;
  bool attention_bias = true;

  std::vector<Field> fields() override {
    return {
        {"vocab_size", &vocab_size, between(1, 1 << 24), ""},
        {"hidden_size", &hidden_size, size_range(), ""},
        {"num_hidden_layers", &num_hidden_layers, between(1, 4096), ""},
        {"num_attention_heads", &num_attention_heads, size_range(), ""},
        {"intermediate_size", &intermediate_size, between(1, 1 << 22), ""},
        {"hidden_act", &hidden_act, {}, ""},
        {"max_position_embeddings", &max_position_embeddings, between(1, 1LL << 40), ""},
        {"initializer_range", &initializer_range, between(0, 10), ""},
        {"layer_norm_eps", &layer_norm_eps, between(0, 1), ""},
        {"tie_word_embeddings", &tie_word_embeddings, {}, ""},
        {"use_parallel_residual", &use_parallel_residual, {}, ""},
        {"attention_bias", &attention_bias, {}, ""},
    };
  }
};

LanguageModelConfig read_neox(const Json& json, const std::string& who) {
  NeoXConfig published;
  published.read_known(json, who);
  const int64_t D = published.hidden_size, H = published.num_attention_heads;
  if (D % H != 0) fail(who, ": num_attention_heads is ", H, ", expected a divisor of hidden_size ", D);
  LanguageModelConfig config;
  config.vocab_size = published.vocab_size;
  config.hidden_size = D;
  config.intermediate_size = published.intermediate_size;
  config.rms_norm_eps = published.layer_norm_eps;
  config.initializer_range = published.initializer_range;
  config.tie_word_embeddings = published.tie_word_embeddings;
  config.norm = "layer";
  config.ffn = "mlp";
  config.activation = read_activation("hidden_act", published.hidden_act, who);
  config.ffn_bias = true;
  config.parallel_residual = published.use_parallel_residual;
  Json layer = {{"mixer", "attention"},
                {"num_attention_heads", H},
                {"qkv_bias", published.attention_bias},
                {"out_bias", published.attention_bias}};
  layer.update(read_rope(json, kNeoxRope, D / H, published.max_position_embeddings, who));
  config.layers = read_layers(Json(static_cast<size_t>(published.num_hidden_layers), layer));
  return config;
}

Json write_neox(const LanguageModelConfig& config) {
  const Json options = all_options(config.layers[0]);
  Json json = {{"architectures", {"GPTNeoXForCausalLM"}},
               {"model_type", "gpt_neox"},
               {"vocab_size", config.vocab_size},
               {"hidden_size", config.hidden_size},
               {"num_hidden_layers", config.layers.size()},
               {"num_attention_heads", options.value("num_attention_heads", 1)},
               {"intermediate_size", std::max<int64_t>(config.intermediate_size, 1)},
               {"hidden_act", write_activation(config.activation)},
               {"layer_norm_eps", config.rms_norm_eps},
               {"initializer_range", config.initializer_range},
               {"tie_word_embeddings", config.tie_word_embeddings},
               {"use_parallel_residual", config.parallel_residual},
               {"attention_bias", options.value("qkv_bias", false)}};
  if (config.layers[0].mixer == "attention") {
    json.update(write_rope(options, kNeoxRope, head_size_of(options, config.hidden_size)));
  }
  return json;
}

}  // namespace

extern const FamilySpec gpt_neox_family_spec;
const FamilySpec gpt_neox_family_spec = {
    .name = "gpt_neox",
    .help = "GPT-NeoX and Pythia (2022)",
    .read = read_neox,
    .write = write_neox,
    .rules = {
        .prefix = "gpt_neox.",
        .rules = {{"gpt_neox.embed_in.weight", {"model.embed_tokens.weight"}},
                  {"gpt_neox.layers.*.input_layernorm.weight", {"model.layers.*.seq_norm.weight"}},
                  {"gpt_neox.layers.*.input_layernorm.bias", {"model.layers.*.seq_norm.bias"}},
                  {"gpt_neox.layers.*.post_attention_layernorm.weight", {"model.layers.*.ffn_norm.weight"}},
                  {"gpt_neox.layers.*.post_attention_layernorm.bias", {"model.layers.*.ffn_norm.bias"}},
                  {"gpt_neox.layers.*.attention.query_key_value.weight",
                   {"model.layers.*.seq_modeling_block.q_proj.weight",
                    "model.layers.*.seq_modeling_block.k_proj.weight",
                    "model.layers.*.seq_modeling_block.v_proj.weight"},
                   Layout::by_head},
                  {"gpt_neox.layers.*.attention.query_key_value.bias",
                   {"model.layers.*.seq_modeling_block.q_proj.bias", "model.layers.*.seq_modeling_block.k_proj.bias",
                    "model.layers.*.seq_modeling_block.v_proj.bias"},
                   Layout::by_head},
                  {"gpt_neox.layers.*.attention.dense.weight", {"model.layers.*.seq_modeling_block.o_proj.weight"}},
                  {"gpt_neox.layers.*.attention.dense.bias", {"model.layers.*.seq_modeling_block.o_proj.bias"}},
                  {"gpt_neox.layers.*.mlp.dense_h_to_4h.weight", {"model.layers.*.mlp.up_proj.weight"}},
                  {"gpt_neox.layers.*.mlp.dense_h_to_4h.bias", {"model.layers.*.mlp.up_proj.bias"}},
                  {"gpt_neox.layers.*.mlp.dense_4h_to_h.weight", {"model.layers.*.mlp.down_proj.weight"}},
                  {"gpt_neox.layers.*.mlp.dense_4h_to_h.bias", {"model.layers.*.mlp.down_proj.bias"}},
                  {"gpt_neox.final_layer_norm.weight", {"model.norm.weight"}},
                  {"gpt_neox.final_layer_norm.bias", {"model.norm.bias"}},
                  {"embed_out.weight", {"lm_head.weight"}}},
        .empty = {"gpt_neox.layers.*.attention.bias", "gpt_neox.layers.*.attention.masked_bias",
                  "gpt_neox.layers.*.attention.rotary_emb.inv_freq", "embed_out.weight"}}};

}  // namespace lineal
