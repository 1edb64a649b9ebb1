// RWKV-4: token shift, a recurrence per channel, and a feed-forward part with token shift too.   (RWKV, 2023)
// rescale_every keeps float16 from overflowing: what is carried from layer to layer is halved after so many, which
// norms see by their epsilon only.
#include "core/error.h"
#include "interop/family.h"
#include "interop/published.h"

namespace lineal {
namespace {

constexpr double kLastEps = 1e-5;  // of ln_out, whatever layer_norm_epsilon is

struct RwkvConfig : PublishedConfig {
  int64_t vocab_size = 50277;
  int64_t hidden_size = 4096;
  int64_t num_hidden_layers = 32;
  int64_t rescale_every = 6;
  double layer_norm_epsilon = 1e-5;
  bool tie_word_embeddings = false;

  std::vector<Field> fields() override {
    return {
        {"vocab_size", &vocab_size, between(1, 1 << 24), ""},
        {"hidden_size", &hidden_size, size_range(), ""},
        {"num_hidden_layers", &num_hidden_layers, between(1, 4096), ""},
        {"rescale_every", &rescale_every, between(-1 << 20, 1 << 20), ""},
        {"layer_norm_epsilon", &layer_norm_epsilon, between(0, 1), ""},
        {"tie_word_embeddings", &tie_word_embeddings, {}, ""},
    };
  }
};

LanguageModelConfig read_rwkv(const Json& json, const std::string& who) {
  RwkvConfig published;
  published.read_known(json, who);
  const int64_t D = published.hidden_size, A = whole_or(json, "attention_hidden_size", D, who);
  if (A < 1 || A > 1 << 20) fail(who, ": attention_hidden_size is ", A, ", expected 1 to ", 1 << 20);
  LanguageModelConfig config;
  config.vocab_size = published.vocab_size;
  config.hidden_size = D;
  config.intermediate_size = whole_or(json, "intermediate_size", 4 * D, who);
  if (config.intermediate_size < 1 || config.intermediate_size > 1 << 22) {
    fail(who, ": intermediate_size is ", config.intermediate_size, ", expected 1 to ", 1 << 22);
  }
  config.rms_norm_eps = published.layer_norm_epsilon;
  if (published.layer_norm_epsilon != kLastEps) config.final_norm_eps = kLastEps;
  config.tie_word_embeddings = published.tie_word_embeddings;
  const bool is_rescaled = published.rescale_every > 0 && published.rescale_every <= published.num_hidden_layers;
  config.rescale_every = is_rescaled ? published.rescale_every : 0;
  config.norm = "layer";
  config.embed_norm = true;
  config.ffn = "channel_mix";
  Json layer = {{"mixer", "rwkv4"}};
  if (A != D) layer["attention_hidden_size"] = A;
  config.layers = read_layers(Json(static_cast<size_t>(published.num_hidden_layers), layer));
  return config;
}

Json write_rwkv(const LanguageModelConfig& config) {
  const int64_t own = all_options(config.layers[0]).value("attention_hidden_size", 0);
  return {{"architectures", {"RwkvForCausalLM"}},
          {"model_type", "rwkv"},
          {"vocab_size", config.vocab_size},
          {"hidden_size", config.hidden_size},
          {"num_hidden_layers", config.layers.size()},
          {"attention_hidden_size", own > 0 ? own : config.hidden_size},
          {"intermediate_size", std::max<int64_t>(config.intermediate_size, 1)},
          {"layer_norm_epsilon", config.rms_norm_eps},
          {"rescale_every", config.rescale_every},
          {"tie_word_embeddings", config.tie_word_embeddings}};
}

NameRules rwkv_rules() {
  NameRules table = {.prefix = "rwkv.",
                     .rules = {{"rwkv.embeddings.weight", {"model.embed_tokens.weight"}},
                               {"rwkv.blocks.0.pre_ln.weight", {"model.embed_norm.weight"}},
                               {"rwkv.blocks.0.pre_ln.bias", {"model.embed_norm.bias"}},
                               {"rwkv.ln_out.weight", {"model.norm.weight"}},
                               {"rwkv.ln_out.bias", {"model.norm.bias"}},
                               {"head.weight", {"lm_head.weight"}}},
                     .empty = {"head.weight"}};
  const auto add = [&](const std::string& theirs, const std::string& ours, int64_t ones = 0) {
    table.rules.push_back({"rwkv.blocks.*." + theirs, {"model.layers.*." + ours}, Layout::same, ones});
  };
  for (const std::string kind : {".weight", ".bias"}) {
    add("ln1" + kind, "seq_norm" + kind);
    add("ln2" + kind, "ffn_norm" + kind);
  }
  for (const std::string name : {"time_mix_key", "time_mix_value", "time_mix_receptance"}) {
    add("attention." + name, "seq_modeling_block." + name, /*ones=*/2);
  }
  for (const std::string name :
       {"time_decay", "time_first", "key.weight", "value.weight", "receptance.weight", "output.weight"}) {
    add("attention." + name, "seq_modeling_block." + name);
  }
  for (const std::string name : {"time_mix_key", "time_mix_receptance"}) {
    add("feed_forward." + name, "mlp." + name, /*ones=*/2);
  }
  for (const std::string name : {"key.weight", "receptance.weight", "value.weight"}) {
    add("feed_forward." + name, "mlp." + name);
  }
  return table;
}

}  // namespace

extern const FamilySpec rwkv_family_spec;
const FamilySpec rwkv_family_spec = {
    .name = "rwkv", .help = "RWKV-4 (2023)", .read = read_rwkv, .write = write_rwkv, .rules = rwkv_rules()};

}  // namespace lineal
