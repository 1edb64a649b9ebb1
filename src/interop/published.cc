#include "interop/published.h"

#include <cmath>

#include "core/error.h"
#include "core/registry.h"
#include "mixers/mixer.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

struct ActivationName {
  const char* published;
  const char* ours;
};
/// The first of ours is how it is written.
constexpr ActivationName kActivations[] = {
    {"silu", "silu"},           {"swish", "silu"},         {"gelu", "gelu"},
    {"gelu_python", "gelu"},    {"gelu_new", "gelu_tanh"}, {"gelu_pytorch_tanh", "gelu_tanh"},
    {"gelu_fast", "gelu_tanh"}, {"relu", "relu"},
};

/// What rope_parameters or rope_scaling may hold.
struct RopeConfig : PublishedConfig {
  std::string rope_type;
  std::string type;
  double rope_theta = 0;
  double partial_rotary_factor = 0;
  double factor = 0;
  int64_t original_max_position_embeddings = 0;
  double attention_factor = 0;
  double mscale = 0;
  double mscale_all_dim = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  bool truncate = true;

  std::vector<Field> fields() override {
    return {
        {"rope_type", &rope_type, {}, ""},
        {"type", &type, {}, ""},
        {"rope_theta", &rope_theta, at_least(0), ""},
        {"partial_rotary_factor", &partial_rotary_factor, between(0, 1), ""},
        {"factor", &factor, at_least(1), ""},
        {"original_max_position_embeddings", &original_max_position_embeddings, between(1, 1LL << 40), ""},
        {"attention_factor", &attention_factor, at_least(0), ""},
        {"mscale", &mscale, at_least(0), ""},
        {"mscale_all_dim", &mscale_all_dim, at_least(0), ""},
        {"beta_fast", &beta_fast, at_least(0), ""},
        {"beta_slow", &beta_slow, at_least(0), ""},
        {"low_freq_factor", &low_freq_factor, at_least(0), ""},
        {"high_freq_factor", &high_freq_factor, at_least(0), ""},
        {"truncate", &truncate, {}, ""},
    };
  }
};

struct RopeKind {
  const char* published;
  const char* ours;
};
constexpr RopeKind kRopes[] = {
    {"default", "rope"}, {"linear", "linear"}, {"dynamic", "dynamic_ntk"}, {"yarn", "yarn"}, {"llama3", "llama3"}};

/// The object of that name, or nothing where it is null or not there.
Json object_of(const Json& json, const char* name, const std::string& who) {
  if (!json.contains(name) || json[name].is_null()) return {};
  if (!json[name].is_object())
    fail(who, ": ", name, " is ", line_of(json[name]).substr(0, 100), ", expected an object");
  return json[name];
}

double number_or(const Json& json, const char* name, double otherwise, const std::string& who) {
  if (!json.contains(name) || json[name].is_null()) return otherwise;
  double value = 0;
  Field{name, &value, at_least(0), ""}.set(json[name], who);
  return value;
}

/// What YaRN multiplies its tables by for m times the usual logarithm.
double yarn_scale(double factor, double m) { return factor <= 1 ? 1 : 0.1 * m * std::log(factor) + 1; }

}  // namespace

void PublishedConfig::read_known(const Json& json, const std::string& who) {
  Json known = Json::object();
  for (const auto& [name, value] : json.items()) {
    if (has(name) && !value.is_null()) known[name] = value;
  }
  read(known, who);
}

int64_t whole_or(const Json& json, const char* name, int64_t otherwise, const std::string& who) {
  if (!json.contains(name) || json[name].is_null()) return otherwise;
  int64_t value = 0;
  Field{name, &value, between(0, 1LL << 40), ""}.set(json[name], who);
  return value;
}

std::string read_activation(const std::string& field, const std::string& name, const std::string& who) {
  std::string known;
  for (const auto& [published, ours] : kActivations) {
    if (name == published) return ours;
    known += text(" ", published);
  }
  fail(who, ": ", field, " is ", line_of(name).substr(0, 100), ", expected one of", known);
}

std::string write_activation(const std::string& name) {
  for (const auto& [published, ours] : kActivations) {
    if (name == ours) return published;
  }
  return name;
}

Json read_rope(const Json& json, const RopeNames& names, int64_t K, int64_t length, const std::string& who) {
  Json given = object_of(json, "rope_scaling", who);
  if (given.empty()) given = object_of(json, "rope_parameters", who);
  RopeConfig rope;
  rope.rope_theta = number_or(json, names.theta, 10000, who);
  rope.partial_rotary_factor = number_or(json, names.share, names.default_share, who);
  if (!given.is_null()) {
    for (const auto& [name, value] : given.items()) {
      if (value.is_object()) fail(who, ": rope_parameters for ", line_of(name), " alone, expected one for all layers");
    }
    rope.read_known(given, who + ": rope_parameters");
  }
  std::string type = rope.rope_type.empty() ? rope.type : rope.rope_type;
  if (type.empty()) type = "default";
  std::string position, known;
  for (const auto& [published, ours] : kRopes) {
    if (type == published) position = ours;
    known += text(" ", published);
  }
  if (position.empty()) fail(who, ": rope_type is ", line_of(type).substr(0, 100), ", expected one of", known);

  if (rope.rope_theta == 0) fail(who, ": ", names.theta, " is 0, expected a number above 0");
  if (!names.has_share && rope.partial_rotary_factor != 1) {
    if (position != "rope") {
      fail(who, ": ", names.share, " is ", rope.partial_rotary_factor, ", expected 1 with rope_type ", type);
    }
    rope.partial_rotary_factor = 1;
  }
  auto turned = static_cast<int64_t>(static_cast<double>(K) * rope.partial_rotary_factor);
  if (turned < 1 || turned > K - turned % 2) {
    fail(who, ": ", names.share, " of heads of size ", K, " turns ", turned, " numbers, expected 1 to ", K - K % 2);
  }
  if (turned % 2 == 1 && (position == "rope" || position == "linear")) {  // transformers turns one more
    rope.rope_theta = std::pow(rope.rope_theta, static_cast<double>(turned + 1) / static_cast<double>(turned));
    ++turned;
  }
  Json options = {{"position", position}, {"rope_theta", rope.rope_theta}, {"original_length", length}};
  if (turned != K) options["rotary_dims"] = turned;
  if (position == "rope") return options;
  const int64_t beside = whole_or(json, "original_max_position_embeddings", 0, who);
  if (beside > 0) rope.original_max_position_embeddings = beside;  // goes before what rope_parameters say
  if (rope.original_max_position_embeddings > 0 && position != "dynamic_ntk") {
    options["original_length"] = rope.original_max_position_embeddings;
  }
  if (rope.factor == 0 && position == "yarn" && rope.original_max_position_embeddings > 0) {
    rope.factor = static_cast<double>(length) / static_cast<double>(rope.original_max_position_embeddings);
  }
  if (rope.factor == 0) fail(who, ": rope_type ", type, " has no factor, expected a number of at least 1");
  options[position == "dynamic_ntk" ? "ntk_constant" : "factor"] = rope.factor;
  if (position == "llama3") {
    options["low_freq_factor"] = rope.low_freq_factor, options["high_freq_factor"] = rope.high_freq_factor;
  }
  if (position == "yarn") {
    options["beta_fast"] = rope.beta_fast, options["beta_slow"] = rope.beta_slow;
    options["truncate"] = rope.truncate;
    if (rope.attention_factor == 0 && rope.mscale > 0 && rope.mscale_all_dim > 0) {
      rope.attention_factor = yarn_scale(rope.factor, rope.mscale) / yarn_scale(rope.factor, rope.mscale_all_dim);
    }
    options["attention_factor"] = rope.attention_factor;
  }
  return options;
}

Json write_rope(const Json& options, const RopeNames& names, int64_t K) {
  const auto position = options["position"].get<std::string>();
  const auto length = options["original_length"].get<int64_t>();
  const auto factor = options["factor"].get<double>();
  const auto turned = options["rotary_dims"].get<int64_t>();
  Json json = {{names.theta, options["rope_theta"]}, {"rope_scaling", nullptr}};
  // Between two whole numbers, so that rounding does not matter.
  const double share = (static_cast<double>(turned) + 0.5) / static_cast<double>(K);
  const bool exact = turned * 4 % K == 0;
  if (turned > 0) json[names.share] = exact ? static_cast<double>(turned) / static_cast<double>(K) : share;
  if (turned == 0 && names.default_share != 1) json[names.share] = 1.0;
  if (length > 0) json["max_position_embeddings"] = length;
  if (position == "linear") json["rope_scaling"] = {{"rope_type", "linear"}, {"factor", factor}};
  if (position == "dynamic_ntk") {
    json["rope_scaling"] = {{"rope_type", "dynamic"}, {"factor", options["ntk_constant"]}};
  }
  if (position == "yarn" || position == "llama3") {
    const auto whole = static_cast<int64_t>(static_cast<double>(length) * factor);
    json["max_position_embeddings"] = whole;
    json["rope_scaling"] = {{"rope_type", position}, {"factor", factor}, {"original_max_position_embeddings", length}};
  }
  if (position == "yarn") {
    for (const char* name : {"beta_fast", "beta_slow", "truncate"}) json["rope_scaling"][name] = options[name];
    if (options["attention_factor"] != 0.0) json["rope_scaling"]["attention_factor"] = options["attention_factor"];
  }
  if (position == "llama3") {
    for (const char* name : {"low_freq_factor", "high_freq_factor"}) json["rope_scaling"][name] = options[name];
  }
  return json;
}

Json all_options(const Layer& layer) {
  Json options = find<MixerSpec>(layer.mixer).config()->values();
  options.update(layer.options);
  return options;
}

int64_t head_size_of(const Json& options, int64_t D) {
  const auto size = options["head_dim"].get<int64_t>(), heads = options["num_attention_heads"].get<int64_t>();
  return size > 0 ? size : D / heads;
}

std::string tokenizer_in(const fs::path& dir, int64_t vocab_size) {
  const auto has = [&](const char* name) {
    std::error_code error;
    return fs::exists(dir / name, error);
  };
  if (has("tokenizer.json") || has("vocab.json")) return "bpe";
  if (has("tokenizer.model")) return "sentencepiece";
  return vocab_size == 256 ? "bytes" : "";
}

}  // namespace lineal
