// Mamba and Mamba-2: blocks of a norm and a mixer, without a feed-forward part.       (Mamba, 2023; Mamba-2, 2024)
#include <cmath>

#include "core/error.h"
#include "interop/family.h"
#include "interop/published.h"

namespace lineal {
namespace {

/// The fields of both.
struct MambaFields : PublishedConfig {
  int64_t vocab_size = 50280;
  int64_t hidden_size = 768;
  int64_t state_size = 16;
  int64_t num_hidden_layers = 32;
  int64_t expand = 2;
  int64_t conv_kernel = 4;
  double layer_norm_epsilon = 1e-5;
  double initializer_range = 0.1;
  bool use_bias = false;
  bool use_conv_bias = true;
  bool tie_word_embeddings = true;
  std::string hidden_act = "silu";
  int64_t num_heads = 128;
  int64_t head_dim = 64;
  int64_t n_groups = 8;
  int64_t chunk_size = 256;

  std::vector<Field> fields() override {
    return {
        {"vocab_size", &vocab_size, between(1, 1 << 24), ""},
        {"hidden_size", &hidden_size, size_range(), ""},
        {"state_size", &state_size, between(1, 4096), ""},
        {"num_hidden_layers", &num_hidden_layers, between(1, 4096), ""},
        {"expand", &expand, between(1, 64), ""},
        {"conv_kernel", &conv_kernel, between(1, 64), ""},
        {"layer_norm_epsilon", &layer_norm_epsilon, between(0, 1), ""},
        {"initializer_range", &initializer_range, between(0, 10), ""},
        {"use_bias", &use_bias, {}, ""},
        {"use_conv_bias", &use_conv_bias, {}, ""},
        {"tie_word_embeddings", &tie_word_embeddings, {}, ""},
        {"hidden_act", &hidden_act, one_of({"silu", "swish"}), ""},
        {"num_heads", &num_heads, size_range(), ""},
        {"head_dim", &head_dim, size_range(), ""},
        {"n_groups", &n_groups, size_range(), ""},
        {"chunk_size", &chunk_size, size_range(), ""},
    };
  }
};

LanguageModelConfig read_common(const MambaFields& published, Json& layer, const char* mixer) {
  LanguageModelConfig config;
  config.vocab_size = published.vocab_size;
  config.hidden_size = published.hidden_size;
  config.intermediate_size = 0;
  config.rms_norm_eps = published.layer_norm_epsilon;
  config.initializer_range = published.initializer_range;
  config.tie_word_embeddings = published.tie_word_embeddings;
  layer = {{"mixer", mixer},
           {"state_size", published.state_size},
           {"expand", published.expand},
           {"conv_kernel", published.conv_kernel},
           {"use_bias", published.use_bias},
           {"use_conv_bias", published.use_conv_bias}};
  return config;
}

LanguageModelConfig read_mamba(const Json& json, const std::string& who) {
  MambaFields published;
  published.read_known(json, who);
  const int64_t inner = whole_or(json, "intermediate_size", published.expand * published.hidden_size, who);
  if (inner != published.expand * published.hidden_size) {
    fail(who, ": intermediate_size is ", inner, ", expected expand * hidden_size ",
         published.expand * published.hidden_size);
  }
  Json layer;
  LanguageModelConfig config = read_common(published, layer, "mamba");
  const bool automatic = json.contains("time_step_rank") && json["time_step_rank"] == "auto";
  const int64_t rank = automatic ? 0 : whole_or(json, "time_step_rank", 0, who);
  layer["time_step_rank"] = rank == (published.hidden_size + 15) / 16 ? 0 : rank;  // which 0 stands for
  config.layers = read_layers(Json(static_cast<size_t>(published.num_hidden_layers), layer));
  return config;
}

/// A bound of time_step_limit; infinity as the public library writes it.
double bound(const Json& value, const std::string& who) {
  if (value.is_object() && value.size() == 1 && value.value("__float__", "") == "Infinity") return INFINITY;
  if (!value.is_number() || value.get<double>() < 0) {
    fail(who, ": time_step_limit has ", line_of(value).substr(0, 100), ", expected a number of at least 0 or Infinity");
  }
  return value.get<double>();
}

LanguageModelConfig read_mamba2(const Json& json, const std::string& who) {
  MambaFields published;
  published.vocab_size = 32768, published.hidden_size = 4096, published.state_size = 128;
  published.num_hidden_layers = 64, published.tie_word_embeddings = false;
  published.read_known(json, who);
  const int64_t inner = published.expand * published.hidden_size, H = published.num_heads;
  if (H * published.head_dim != inner) {
    fail(who, ": num_heads ", H, " times head_dim ", published.head_dim, ", expected expand * hidden_size ", inner);
  }
  if (inner % published.n_groups != 0) {
    fail(who, ": n_groups is ", published.n_groups, ", expected a divisor of expand * hidden_size ", inner);
  }
  Json layer;
  LanguageModelConfig config = read_common(published, layer, "mamba2");
  layer["num_heads"] = H;
  layer["n_groups"] = published.n_groups;
  layer["chunk_size"] = published.chunk_size;
  layer["norm_eps"] = published.layer_norm_epsilon;
  if (const Json limit = json.value("time_step_limit", Json()); !limit.is_null()) {
    if (!limit.is_array() || limit.size() != 2) {
      fail(who, ": time_step_limit is ", line_of(limit).substr(0, 100), ", expected two numbers");
    }
    const double least = bound(limit[0], who), most = bound(limit[1], who);
    if (!(least <= most && std::isfinite(least) && most > 0)) {
      fail(who, ": time_step_limit is ", least, " to ", most, ", expected the second at least the first and above 0");
    }
    layer["time_step_least"] = least;
    layer["time_step_most"] = std::isfinite(most) ? most : 0;
  }
  config.layers = read_layers(Json(static_cast<size_t>(published.num_hidden_layers), layer));
  return config;
}

Json write_common(const LanguageModelConfig& config, const Json& options) {
  Json json = {{"architectures", Json::array()},
               {"model_type", ""},
               {"vocab_size", config.vocab_size},
               {"hidden_size", config.hidden_size},
               {"num_hidden_layers", config.layers.size()},
               {"layer_norm_epsilon", config.rms_norm_eps},
               {"initializer_range", config.initializer_range},
               {"tie_word_embeddings", config.tie_word_embeddings},
               {"hidden_act", "silu"}};
  for (const char* name : {"state_size", "expand", "conv_kernel", "use_bias", "use_conv_bias"}) {
    if (options.contains(name)) json[name] = options[name];
  }
  return json;
}

Json write_mamba(const LanguageModelConfig& config) {
  const Json options = all_options(config.layers[0]);
  Json json = write_common(config, options);
  json["architectures"] = {"MambaForCausalLM"}, json["model_type"] = "mamba";
  const int64_t rank = options.value("time_step_rank", 0);
  json["time_step_rank"] = rank > 0 ? rank : (config.hidden_size + 15) / 16;
  json["intermediate_size"] = options.value("expand", 2) * config.hidden_size;
  return json;
}

Json write_mamba2(const LanguageModelConfig& config) {
  const Json options = all_options(config.layers[0]);
  Json json = write_common(config, options);
  json["architectures"] = {"Mamba2ForCausalLM"}, json["model_type"] = "mamba2";
  for (const char* name : {"num_heads", "n_groups", "chunk_size"}) {
    if (options.contains(name)) json[name] = options[name];
  }
  json["head_dim"] = options.value("expand", 2) * config.hidden_size / options.value("num_heads", 1);
  const double most = options.value("time_step_most", 0.0);
  json["time_step_limit"] = {options.value("time_step_least", 0.0),
                             most > 0 ? Json(most) : Json{{"__float__", "Infinity"}}};
  return json;
}

NameRules rules(const std::vector<std::string>& of_mixer) {
  NameRules table = {.prefix = "backbone.",
                     .rules = {{"backbone.embeddings.weight", {"model.embed_tokens.weight"}},
                               {"backbone.layers.*.norm.weight", {"model.layers.*.seq_norm.weight"}},
                               {"backbone.norm_f.weight", {"model.norm.weight"}},
                               {"lm_head.weight", {"lm_head.weight"}}},
                     .empty = {"lm_head.weight"}};
  for (const auto& name : of_mixer) {
    table.rules.push_back({"backbone.layers.*.mixer." + name, {"model.layers.*.seq_modeling_block." + name}});
  }
  return table;
}

}  // namespace

extern const FamilySpec mamba_family_spec, mamba2_family_spec;
const FamilySpec mamba_family_spec = {
    .name = "mamba",
    .help = "Mamba (2023)",
    .read = read_mamba,
    .write = write_mamba,
    .rules = rules({"in_proj.weight", "in_proj.bias", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight",
                    "dt_proj.bias", "A_log", "D", "out_proj.weight", "out_proj.bias"})};
const FamilySpec mamba2_family_spec = {
    .name = "mamba2",
    .help = "Mamba-2 (2024)",
    .read = read_mamba2,
    .write = write_mamba2,
    .rules = rules({"in_proj.weight", "in_proj.bias", "conv1d.weight", "conv1d.bias", "dt_bias", "A_log", "D",
                    "norm.weight", "out_proj.weight", "out_proj.bias"})};

}  // namespace lineal
